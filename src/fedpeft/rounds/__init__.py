"""The loop of rounds, what passes between server and client, and the ledger."""
