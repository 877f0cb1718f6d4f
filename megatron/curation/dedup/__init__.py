"""Equal and nearly equal documents, of which one is kept."""
