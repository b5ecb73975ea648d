"""The gateway's process: worker processes, what passes through to them, and what every request has to pass."""
