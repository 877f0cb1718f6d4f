"""Documents that hold a problem or a solution of a benchmark."""
