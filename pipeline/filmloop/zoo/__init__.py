"""The zoo: every registered version is a candidate ancestor of the next one, and may come back without training."""
