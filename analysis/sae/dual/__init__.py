"""SAEs trained on two corpora at once, one to forget and one to retain, and what is said to keep their latents apart."""
