"""How well an attack tells two groups apart, and what that says about privacy: arithmetic on scores, no model."""
