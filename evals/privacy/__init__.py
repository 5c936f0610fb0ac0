"""What can be got out of a model: attacks on it, each a part of `flexo-leak`."""
