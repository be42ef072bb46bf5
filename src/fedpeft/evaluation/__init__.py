"""Measures of a state on held-out examples, common ones or a client's own."""
