"""How the examples of a simulation are divided among clients."""
