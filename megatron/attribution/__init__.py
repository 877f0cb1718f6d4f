"""Which files a text came from, looked up in the token files that a model was trained on."""
