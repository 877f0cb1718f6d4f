"""Scores of a model by what its code does: tasks, samples, an isolated place to run them, and pass@k."""
