"""Personal data: found by rules and by a model, and replaced."""
