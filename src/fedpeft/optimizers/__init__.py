"""Optimizers of a client's steps."""
