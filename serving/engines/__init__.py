"""Engines: what runs the model. Each takes jobs and says what becomes of them; `engine.py` says how."""
