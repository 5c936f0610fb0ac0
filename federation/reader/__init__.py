"""What anyone can do who joined: look, fetch, and verify."""
