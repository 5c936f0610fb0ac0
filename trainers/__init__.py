"""Training: the public anchor, one expert against it, router rows after a merge, and whole models as baselines."""
