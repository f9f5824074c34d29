"""Globus: Transfer moves the files, Compute starts the training. The SDKs are imported here and nowhere else."""
