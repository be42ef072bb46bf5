"""Terms that a client adds to its loss."""
