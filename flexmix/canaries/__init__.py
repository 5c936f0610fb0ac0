"""Canaries: made-up documents planted in a copy of a text, to find out what a model gives away of it."""
