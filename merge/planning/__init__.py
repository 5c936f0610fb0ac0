"""What a merge does before and while it writes: plan, checks, membership, router rows."""
