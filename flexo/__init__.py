"""What everything stands on: errors, files that appear whole or not at all, the console, the config folder."""
