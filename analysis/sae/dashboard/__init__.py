"""One page an SAE."""
