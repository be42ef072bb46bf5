"""The server's step along the aggregated update."""
