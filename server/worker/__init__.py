"""The worker's process: one model, the thread that owns it, and what runs on it."""
