"""What a plan will send, compute and hold, before it runs."""
