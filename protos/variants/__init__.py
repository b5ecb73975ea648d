"""Variants: other weights for a model, as low-rank deltas and hooks, and how requests name them."""
