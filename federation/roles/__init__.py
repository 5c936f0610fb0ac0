"""Keys, signed metadata, and what of a store is to be believed."""
