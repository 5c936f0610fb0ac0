"""An answer and the experts that made it, in a terminal and as a page."""
