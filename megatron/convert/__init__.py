"""To and from other systems' checkpoints."""
