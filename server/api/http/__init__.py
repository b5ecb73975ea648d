"""The HTTP app: what all routes share, from the first byte to the last."""
