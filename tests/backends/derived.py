"""Tiny checkpoints of architectures that have no reference here, for the tests of derived tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from probewire.backends import load_backend
from probewire.backends.hooks.base import Backend
from tests.parity.harness import CHUNKED
from tests.tiny_models import VOCAB_SIZE, write_tokenizer

__all__ = ["SIZES", "derived", "logits_of", "write"]

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
}


def write(kind: str, folder: Path, **fields: Any) -> Path:
    """A checkpoint with random weights, large enough that nothing vanishes. Skips where this transformers has no such kind."""
    try:
        config = AutoConfig.for_model(
            kind, vocab_size=VOCAB_SIZE, bos_token_id=1, eos_token_id=2, pad_token_id=2, **fields
        )
    except ValueError:
        pytest.skip(f"this transformers has no {kind}")
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def logits_of(folder: Path, tokens: list[int]) -> Any:
    """[row, vocab], as transformers computes them with its own attention."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0].numpy()


def derived(folder: Path, dtype: str = "float32", backend: str = "torch") -> Backend:
    """A backend whose sites are tried at load, whether it has a reference or not."""
    return load_backend(backend, folder, model_id="tiny", limits=CHUNKED, dtype=dtype, device="cpu")
