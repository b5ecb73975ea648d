"""Fine-tuning on the client with peft and transformers' Trainer; results are variants. Needs the extra: probewire[tune]."""
