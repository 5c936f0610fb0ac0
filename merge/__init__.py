"""Expert files, checkpoints and merging: files and names only, no model is ever run here."""
