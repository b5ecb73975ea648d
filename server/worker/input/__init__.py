"""A request's way in: checked against the model, and made ready for its thread."""
