"""Speeds, measured side by side with what others use: behind tools/bench.py."""
