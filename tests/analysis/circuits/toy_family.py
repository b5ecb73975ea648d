"""Llamas of two layers and three sizes, trained on random tokens said twice until they copy.

All sayings are of one length, so that looking back so far is enough: heads of layer 1 look at what followed last time, and no head
of layer 0 is needed. (Of other lengths, 1,500 steps were too few to learn it, and a model without the penalty copies by most heads.)
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tests.tiny_models import tiny_checkpoint

__all__ = ["SIZES", "VOCABULARY", "train_toy"]

SIZES = (32, 64, 128)
"""d_model."""
VOCABULARY = range(64)
LENGTH, BATCH, STEPS = 16, 32, 600
PENALTY = 0.02
"""On the mean norm of what each head says: heads that are not needed fall silent, so that the circuit is a small one."""
HEADS = 4


def train_toy(folder: Path, d_model: int, *, seed: int = 0, steps: int = STEPS) -> Path:
    """Train one, and write it as a checkpoint. Under a minute of one core, whatever the size."""
    shape = {
        "num_hidden_layers": 2,
        "hidden_size": d_model,
        "intermediate_size": 2 * d_model,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": d_model // HEADS,
    }
    path = tiny_checkpoint("llama", folder, **shape)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        else:
            torch.nn.init.ones_(parameter)
    spoken: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _, given: spoken.append(_said(given[0])))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        once = torch.stack([torch.randperm(len(VOCABULARY), generator=generator)[:LENGTH] for _ in range(BATCH)])
        tokens = torch.cat([torch.full((BATCH, 1), 256), once, once], dim=1)  # 256 begins a text
        spoken.clear()
        logits = model(tokens).logits[:, LENGTH + 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.reshape(-1, logits.shape[-1]), once[:, 1:].reshape(-1))
        loss = loss + PENALTY * sum(spoken)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()
    model.save_pretrained(path)
    return path


def _said(z: torch.Tensor) -> torch.Tensor:
    """Σ over heads of the mean norm of z."""
    return z.unflatten(-1, (HEADS, -1)).norm(dim=-1).mean(dim=(0, 1)).sum()
