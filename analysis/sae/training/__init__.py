"""Training on batches, resumable."""
