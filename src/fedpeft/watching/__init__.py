"""Runs and nodes as they stand: their pages, and the server that shows these."""
