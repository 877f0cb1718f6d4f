"""GPT as one pipeline stage sees it."""
