"""Router rows: where they start, training and fitting them after a merge."""
