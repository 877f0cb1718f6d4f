"""From repositories to training text: stages that keep, drop or change documents, with a ledger of every decision."""
