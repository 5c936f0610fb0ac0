"""Training an expert with differential privacy: randomness, accounting, the ledger, and the module that trains."""
