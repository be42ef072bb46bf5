"""The server's half of a round, and a client's answers to it."""
