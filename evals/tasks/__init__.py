"""Task files for lm-eval: domains, arithmetic and multiple choice, in a folder that needs nothing else."""
