"""Tuning under a pushed neuron: the association that is learned, the arms, the sweep over them, and what it comes to."""
