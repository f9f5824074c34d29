"""The three stages of the edge, each a loop over the ring: source, inference (in two seats), staging. They know the ring, not each other."""
