"""All models on all texts: which cells, how they are kept, what comes out over seeds."""
