"""An answer and who made it, for the terminal and as a page."""
