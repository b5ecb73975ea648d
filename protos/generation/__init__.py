"""What a generation is given beside its plan: chat messages, and how the next token is chosen."""
