"""Builds a run in reading order and drives it."""
