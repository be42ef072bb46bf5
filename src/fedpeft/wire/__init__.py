"""Frames, payloads and sockets."""
