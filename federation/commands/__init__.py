"""`flexo-federation`, by who uses it."""
