"""The choice of the clients that take part in a round."""
