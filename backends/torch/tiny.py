"""A small checkpoint with random weights, of any architecture that transformers has."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from ...protos.errors import InvalidArgument
from ...protos.tensors import Array

__all__ = ["own_logits", "write_tiny"]

MOST_WEIGHTS = 50_000_000


@contextmanager
def _quietly() -> Generator[None]:
    """No progress bar: nobody asked for this model."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def write_tiny(folder: Path, config: dict[str, Any]) -> None:
    """Write a config that has every field, and weights drawn for it by the library's own class."""
    fields = {name: value for name, value in config.items() if name != "model_type"}
    made: Any = AutoConfig.for_model(config["model_type"], **json.loads(json.dumps(fields)))
    with torch.device("meta"):  # a size that has another name could ask for all the memory there is
        sketch: Any = AutoModelForCausalLM.from_config(made, attn_implementation="eager")
    n_weights = sum(weight.numel() for weight in sketch.parameters())
    if n_weights > MOST_WEIGHTS:
        raise InvalidArgument(f"a small model of this config has {n_weights:,} weights; {MOST_WEIGHTS:,} are allowed")
    model: Any = AutoModelForCausalLM.from_config(made, dtype=torch.float32, attn_implementation="eager")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
    with _quietly():
        model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))


def own_logits(folder: Path, tokens: list[int]) -> Array:
    """Logits [row, vocab] of the library's own model with its own attention, in float32."""
    with _quietly():
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model.eval()(torch.tensor([tokens]), use_cache=False).logits[0].numpy()
