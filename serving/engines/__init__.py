"""Engines: what runs the model. Each takes jobs and says what becomes of them; `engine.py` is what all have in common."""
