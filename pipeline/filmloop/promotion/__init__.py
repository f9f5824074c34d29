"""The gate, the alias moves behind it, and the words that people read about a version. No torch, no vendor."""
