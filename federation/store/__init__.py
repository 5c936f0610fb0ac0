"""Where a federation's files lie, and how they are read and written without trusting the place."""
