"""A small checkpoint with random weights, of any architecture that transformers has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from ...protos.tensors import Array

__all__ = ["own_logits", "write_tiny"]


def write_tiny(folder: Path, config: dict[str, Any]) -> None:
    """Write a config that has every field, and weights drawn for it by the library's own class."""
    fields = {name: value for name, value in config.items() if name != "model_type"}
    made: Any = AutoConfig.for_model(config["model_type"], **json.loads(json.dumps(fields)))
    model: Any = AutoModelForCausalLM.from_config(made, dtype=torch.float32, attn_implementation="eager")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # nobody asked for this model
    try:
        model.save_pretrained(folder)
    finally:
        if shown:
            logging.enable_progress_bar()
    (folder / "config.json").write_text(json.dumps(config))


def own_logits(folder: Path, tokens: list[int]) -> Array:
    """Logits [row, vocab] of the library's own model with its own attention, in float32."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
