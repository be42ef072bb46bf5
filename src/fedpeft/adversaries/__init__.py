"""Clients that lie, for tests of a defence."""
