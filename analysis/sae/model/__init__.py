"""One SAE: its config, its weights, on the disk and on the server."""
