"""Which token comes next: from float32 logits on the host, the same for both backends."""
