"""Where clients train: here, in processes, in one stack, in Flower."""
