"""Contribution files instead of a connection, and their merge."""
