"""What the latents of an SAE do on a corpus."""
