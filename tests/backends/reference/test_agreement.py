"""Every family against transformers: each tensor of the residual stream, the attention, and the logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from probewire.backends.reference import load
from probewire.protos.sites import Site
from tests.tiny_models import FAMILIES, tiny_checkpoint

Array = np.ndarray[Any, Any]

TOKENS = [256, *b"The quick brown fox jumped"]
"""More than three times the tiny windows."""
TOLERANCE = {"float32": 1e-4, "float64": 1e-5}
"""Relative to the largest value. transformers computes rotations and norms in float32, whatever the dtype."""

_YARN = FAMILIES["gpt_oss"]["rope_parameters"]
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in FAMILIES),
    ("llama", {"rope_parameters": _LLAMA3}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0}}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "hidden_act": "gelu"}),
    ("mistral", {"sliding_window": None}),
    ("qwen2", {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8}),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    ("phi3", {"sliding_window": 8}),
    ("gpt_oss", {"rope_parameters": {**_YARN, "truncate": False}}),
]


CASES = [
    *((family, overrides, "float32") for family, overrides in VARIANTS),
    *((family, {}, "float64") for family in FAMILIES),
]


def _name(value: Any) -> str:
    return value if isinstance(value, str) else "-".join(value) or "default"


@pytest.mark.parametrize(("family", "overrides", "dtype"), CASES, ids=_name)
def test_family_agrees_with_transformers(
    family: str, overrides: dict[str, Any], dtype: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tiny_checkpoint(family, tmp_path_factory.mktemp("tiny"), **overrides)
    got: dict[str, Array] = {}

    def tap(site: Site, value: Array, linear_input: Array | None = None) -> Array:
        got[str(site)] = value
        return value

    load(folder, dtype).forward(TOKENS, tap)

    assert {str(value.dtype) for value in got.values()} == {dtype}
    errors = {
        site: np.abs(got[site] - value).max() / np.abs(value).max()
        for site, value in _transformers(folder, dtype).items()
    }
    assert {site: error for site, error in errors.items() if not error <= TOLERANCE[dtype]} == {}


def _transformers(folder: Path, dtype: str) -> dict[str, Array]:
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager", experts_implementation="eager"
    )
    with torch.no_grad():
        out = model(torch.tensor([TOKENS]), output_hidden_states=True, output_attentions=True)
    streams = [state[0].numpy() for state in out.hidden_states]
    return {
        **{f"resid_pre.{i}": stream for i, stream in enumerate(streams[:-1])},
        "final_norm": streams[-1],
        **{f"attn_probs.{i}": probs[0].numpy() for i, probs in enumerate(out.attentions)},
        "logits": out.logits[0].numpy(),
    }
