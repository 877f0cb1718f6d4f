"""Sharded checkpoints in safetensors and JSON."""
