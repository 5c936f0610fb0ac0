"""The study: every recipe on every domain and seed, as runs of the public commands, cached and resumable."""
