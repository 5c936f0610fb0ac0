"""The paired layer: one expert and its router row beside the frozen public expert."""
