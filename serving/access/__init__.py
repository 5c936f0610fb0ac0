"""Who may ask for what: keys, their limits, and what a client is told when a request is refused."""
