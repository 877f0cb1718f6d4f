"""A run of curation over shards of any number: documents and stages, passes, ledger, totals, card."""
