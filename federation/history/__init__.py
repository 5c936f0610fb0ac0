"""What happened in a federation: a chain of events, and notices of withdrawal."""
