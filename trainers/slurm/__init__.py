"""Training as SLURM jobs: requeue, and Hydra multiruns as job arrays."""
