"""Training as a job of Slurm."""
