"""How updates meet: in the open, in a secure sum, over the air."""
