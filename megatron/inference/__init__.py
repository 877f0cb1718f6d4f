"""Text from a model: key/value cache, sampling, and an engine that many requests enter and leave."""
