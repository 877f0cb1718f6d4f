"""Runs that are killed, starved and lied to on purpose, and the proof that they go on as if nothing had happened."""
