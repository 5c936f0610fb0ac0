"""What a federation accepts, and why it refuses the rest."""
