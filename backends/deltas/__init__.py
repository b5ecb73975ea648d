"""What variants add to weights: which weights take deltas, which rows of a forward, and by which factors."""
