"""A request's way out: what the model's thread found, as events in order."""
