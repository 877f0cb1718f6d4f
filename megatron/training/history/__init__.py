"""What a run did, told from its folder afterwards: which documents a step read, and its steps computed again."""
