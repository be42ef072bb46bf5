"""Changes of training examples."""
