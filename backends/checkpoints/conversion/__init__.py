"""Checkpoints that are stored in another way (packed, pickled, as an adapter, GGUF), written once as the plain folder they mean."""
