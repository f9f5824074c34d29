"""Training as a job of PBS Professional."""
