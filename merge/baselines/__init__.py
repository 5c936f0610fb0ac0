"""Merges of dense models that experts are compared with: soups and BTX."""
