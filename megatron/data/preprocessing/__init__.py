"""From text to token files: records are encoded in parallel, written, shuffled, and merged."""
