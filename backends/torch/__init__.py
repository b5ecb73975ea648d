"""PyTorch: models by transformers, batching by its continuous-batching engine."""
