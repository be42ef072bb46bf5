"""Nodes of a federation, with what their owners agreed to."""
