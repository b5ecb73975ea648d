"""A model's site table, derived from what one forward shows and proven on the model itself."""
