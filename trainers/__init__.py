"""Training: the public anchor, the paired expert layer, and what Lightning needs for both.

`paired` (the two-expert layer), `routing` (router rows from statistics of text), `lit` and `optim` (Lightning modules
and optimiser), `callbacks`, and one module per entry script or command: `anchor`, `expert`, `embed`. `entry` runs the
scripts under Hydra.
"""
