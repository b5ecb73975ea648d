"""Before and after: what a variant may break, what it broke, with intervals and verdicts of three values."""
