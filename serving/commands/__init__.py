"""The commands of this room, each in a file called after it."""
