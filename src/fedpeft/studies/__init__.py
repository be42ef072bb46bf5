"""Studies of many cells, and sweeps that run them."""
