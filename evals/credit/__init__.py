"""The credit of owners: how many bits each expert saves, by itself and among the others."""
