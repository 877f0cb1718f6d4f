"""Which files look like code that somebody wrote."""
