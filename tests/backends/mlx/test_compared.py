"""An architecture whose mlx-lm code nobody read is held against transformers at load, on its own config."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

pytest.importorskip("torch")
pytest.importorskip("mlx.core")

from probewire.backends.mlx import backend as mlx_backend, mends
from probewire.protos.errors import FailedPrecondition, InvalidArgument
from tests.backends.derived import SIZES, write
from tests.parity.harness import load

HEADS = {**SIZES, "num_key_value_heads": 2, "head_dim": 16}
WINDOWS = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}
DIFFERS = "does not compute what transformers computes: .* use the torch backend"


def refused(folder: Path) -> None:
    with pytest.raises(InvalidArgument, match=DIFFERS):
        load("mlx", folder)


def test_another_activation_is_seen(tmp_path: Path) -> None:
    """The smallest difference there was: one kind of gelu for the other."""
    folder = write("gemma", tmp_path, **HEADS)
    with mock.patch.object(mends, "_OTHER_ACTIVATIONS", {}):
        refused(folder)
    load("mlx", folder).close()


def test_an_activation_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    folder = write("starcoder2", tmp_path, **SIZES, num_key_value_heads=2, hidden_act="quick_gelu")
    with pytest.raises(
        InvalidArgument, match=r"hidden_act='quick_gelu' cannot be run on mlx for starcoder2; use torch"
    ):
        load("mlx", folder)


def test_a_rotation_of_whole_heads_where_half_is_asked_is_seen(tmp_path: Path) -> None:
    folder = write("glm", tmp_path, **HEADS)

    def whole(dims: int, **how: Any) -> Any:
        return rope(dims * 2, **how)

    rope = mends.nn.RoPE
    with mock.patch.object(mends.nn, "RoPE", whole):
        refused(folder)


def test_a_lost_window_is_seen(tmp_path: Path) -> None:
    folder = write("olmo3", tmp_path, **SIZES, num_key_value_heads=2, **WINDOWS)
    with mock.patch.object(mlx_backend, "windows_of", lambda config, _: [None] * config.num_hidden_layers):
        refused(folder)


def test_a_limit_that_small_values_do_not_reach_is_seen(tmp_path: Path) -> None:
    """mlx-lm's OLMoE clips nothing: the comparison lowers what checkpoints clip at."""
    mixture = {**SIZES, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2}
    refused(write("olmoe", tmp_path, **mixture, clip_qkv=8.0))


def test_layers_that_begin_late_are_compared_too(tmp_path: Path) -> None:
    """A number says from which layer on there are experts, and mlx-lm's code for them differs."""
    mixture = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_layer_interval": 1}
    sizes = {**SIZES, "num_key_value_heads": 2, "num_hidden_layers": 8}
    refused(write("ernie4_5_moe", tmp_path, **sizes, **mixture, moe_layer_start_index=3))


def test_without_torch_nothing_can_be_compared(tmp_path: Path) -> None:
    folder = write("olmo2", tmp_path, **SIZES, num_key_value_heads=2)
    real = builtins.__import__

    def missing(name: str, scope: Any = None, local: Any = None, names: Any = (), level: int = 0) -> Any:
        if level and name == "torch.tiny":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return real(name, scope, local, names, level)

    with (
        mock.patch.object(builtins, "__import__", missing),
        pytest.raises(
            FailedPrecondition, match=r"olmo2 on mlx is compared with transformers at load, which needs torch"
        ),
    ):
        load("mlx", folder)
