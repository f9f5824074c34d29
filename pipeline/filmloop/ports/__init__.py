"""What the loop needs from the world, as protocols; every one has a local adapter, which is the default."""
