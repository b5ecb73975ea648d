"""The hook engine: from a plan to what it does to the tensors of a forward, on any array library."""
