"""Making the public anchor, and the context layer that shows its routers the text before."""
