"""What a model learns: examples, model, loss and metrics."""
