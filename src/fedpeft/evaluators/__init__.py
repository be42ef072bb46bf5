"""The places where a model is measured after a round."""
