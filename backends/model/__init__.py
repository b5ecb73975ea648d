"""Facts about a model: its sites, sizes, weights, tokenizer and limits."""
