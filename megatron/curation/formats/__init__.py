"""Documents as the text that is trained on: files, commits, issues, notebooks."""
