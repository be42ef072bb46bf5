"""Who measures the model after a round."""
