"""Sample corpora from registry packages: `build` makes them, `recipe` says from what, the rest reads or writes text."""
