"""A run as a folder that transformers and peft load."""
