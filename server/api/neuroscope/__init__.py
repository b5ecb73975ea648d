"""NeuroScope's dialect."""
