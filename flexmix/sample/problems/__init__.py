"""School problems with solutions, written by program: the sample text of the domain math."""
