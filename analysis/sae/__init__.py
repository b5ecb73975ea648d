"""Sparse autoencoders: activation datasets, training, evaluation, stability, dashboards, statistics, forgetting."""
