"""Documents from files, folders, saved datasets and the hub, read in constant memory."""
