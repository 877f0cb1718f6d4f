"""Which files may be trained on: languages, licences, opt-outs."""
