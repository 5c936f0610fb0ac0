"""Measuring one model on one text: bits per byte, routing, ensembles, classifiers."""
