"""What an owner does: submit an expert, and withdraw it."""
