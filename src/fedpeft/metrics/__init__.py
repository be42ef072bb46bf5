"""Numbers of held-out examples that were counted."""
