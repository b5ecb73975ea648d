"""Texts, activations of them, and the batches that SAEs train on."""
