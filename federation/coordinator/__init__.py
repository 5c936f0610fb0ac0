"""What only the coordinator's keys can do."""
