"""The attacks, one module each: what it needs, and the figures that it gives."""
