"""The state that is counted before a load is what the libraries' own caches hold of a sequence afterwards, to the byte."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import ArraysCache, make_prompt_cache

from probewire.backends.model.footprint import check_room, footprint
from probewire.backends.model.limits import Limits
from probewire.backends.model.recurrent import state_size
from probewire.protos.errors import FailedPrecondition
from tests.backends.derived import SIZES, derived, write
from tests.tiny_models import tiny_checkpoint

SLOTS = Limits(n_slots=3, cache_tokens=1000)
COUNTERS = 8
"""Bytes of numbers that a cache keeps besides (recurrent_gemma)."""
GROUPED = {**SIZES, "num_key_value_heads": 2}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 4}
DELTA = {
    **GROUPED,
    "head_dim": 16,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
}
KINDS: dict[str, dict[str, Any]] = {
    "mamba": {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8},
    "mamba2": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "state_size": 8,
        "num_heads": 8,
        "head_dim": 16,
        "n_groups": 2,
    },
    "lfm2": {**GROUPED, "layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False},
    "jamba": {
        **GROUPED,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 1,
        "mamba_d_state": 8,
        "mamba_dt_rank": 8,
    },
    "bamba": {**GROUPED, **MAMBA2, "mamba_n_groups": 2, "attn_layer_indices": [1, 3]},
    "qwen3_5_text": DELTA,
    "olmo_hybrid": DELTA,
    "rwkv": {"hidden_size": 64, "num_hidden_layers": 2, "context_length": 128},
    "recurrent_gemma": {**GROUPED, "lru_width": 64, "attention_window_size": 8, "head_dim": 16},
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_a_sequence_holds(kind: str, tmp_path: Path) -> None:
    folder = write(kind, tmp_path, **KINDS[kind])
    need = footprint(folder, "float32", SLOTS)
    backend: Any = derived(folder)
    try:
        held = backend.engine.cost
    finally:
        backend.close()
    assert held.state > 0
    assert abs(need.state - 3 * held.state) <= 3 * COUNTERS
    assert need.cache == 1000 * held.position


@pytest.mark.parametrize("kind", ["mamba", "lfm2", "qwen3_5_text"])
def test_mlx_holds_no_more(kind: str, tmp_path: Path) -> None:
    folder = write(kind, tmp_path, **KINDS[kind])
    backend: Any = derived(folder, backend="mlx")
    try:
        caches: list[Any] = make_prompt_cache(backend.model)
        mx.eval(backend.model(mx.array([[5, 6, 7]]), cache=caches))
        states: Any = tree_flatten([cache.state for cache in caches if isinstance(cache, ArraysCache)])
        held = sum(array.nbytes for _, array in states if isinstance(array, mx.array))
    finally:
        backend.close()
    assert 0 < held <= footprint(folder, "float32", SLOTS).state / 3 <= 1.5 * held  # a row less before each convolution


def test_narrow_floats_keep_their_states_wide(tmp_path: Path) -> None:
    """Of Mamba in 16 bits: the last rows before the convolution are narrow, the state is not."""
    folder = write("mamba", tmp_path, **KINDS["mamba"])  # 2 layers, 128 channels, 8 numbers each, 4 rows
    assert footprint(folder, "bfloat16", SLOTS).state == 3 * 2 * 128 * (8 * 4 + 4 * 2)


def test_published_ones_take_what_their_cards_say() -> None:
    """Of shapes alone. Qwen3-Next-80B: 36 DeltaNets of 32 heads of 128 by 128; Codestral Mamba: 64 layers, 8 groups."""
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(36):
        module = f"model.layers.{layer}.linear_attn"
        shapes |= {f"{module}.A_log": (32,), f"{module}.conv1d.weight": (8192, 1, 4)}
        shapes |= {f"{module}.out_proj.weight": (2048, 4096)}
    found = state_size(shapes, {"linear_num_key_heads": 16})
    assert (found.wide, found.in_dtype) == (36 * 32 * 128 * 128, 36 * 8192 * 4)
    shapes = {}
    for layer in range(64):
        module = f"backbone.layers.{layer}.mixer"
        shapes |= {f"{module}.A_log": (128,), f"{module}.D": (128,), f"{module}.conv1d.weight": (10240, 1, 4)}
        shapes |= {f"{module}.out_proj.weight": (4096, 8192)}
    assert state_size(shapes, {"n_groups": 8}).wide == 64 * 128 * 64 * 128


def test_what_has_attention_alone_has_none(tmp_path: Path) -> None:
    assert footprint(tiny_checkpoint("qwen3", tmp_path), "float32", SLOTS).state == 0


def test_a_tower_counts_too(wrapper: Callable[[str], Path]) -> None:
    folder = wrapper("qwen3_5")
    text = json.loads((folder / "config.json").read_text())["text_config"]
    heads, d_k, d_v = (text[f"linear_{name}"] for name in ("num_value_heads", "key_head_dim", "value_head_dim"))
    n_layers = text["layer_types"].count("linear_attention")
    assert footprint(folder, "float32", SLOTS).state >= 3 * 4 * n_layers * heads * d_k * d_v


def test_a_model_whose_states_do_not_fit_is_refused(tmp_path: Path) -> None:
    folder = write("mamba", tmp_path, **KINDS["mamba"])
    need = footprint(folder, "float32", Limits(n_slots=1))
    check_room(folder, "m", "float32", Limits(n_slots=1), need.total)
    with pytest.raises(FailedPrecondition, match=r"recurrent state of 100,000 sequences 1\.14 GiB.*or --slots"):
        check_room(folder, "m", "float32", Limits(n_slots=100_000), need.total)
    assert footprint(folder, "float32", Limits(n_slots=100_000)).state == 100_000 * need.state
