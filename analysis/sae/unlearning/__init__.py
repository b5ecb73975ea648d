"""Forgetting by clamping latents."""
