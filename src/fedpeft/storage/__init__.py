"""Files, and the memory of clients."""
