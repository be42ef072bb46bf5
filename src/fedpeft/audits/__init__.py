"""Attacks on messages, and the epsilon that an attacker can show."""
