"""Measuring models: bits per byte, routing, the credit of each owner, audits and studies."""
