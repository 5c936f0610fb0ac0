"""All models on all texts: the rows, the cache of their cells, the results of one seed and of several."""
