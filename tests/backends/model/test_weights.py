"""Weights as the checkpoint has them: values, never codes under a weight's name; and bytes as they are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from probewire.backends.model.weights import CheckpointWeights, has_own_head
from probewire.protos.errors import NotFound, Unsupported


def _written(folder: Path, **tensors: torch.Tensor) -> CheckpointWeights:
    save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")
    return CheckpointWeights(folder)


def test_values_come_back_to_the_bit(tmp_path: Path) -> None:
    value = torch.randn(3, 5)
    weights = _written(tmp_path, a__weight=value, b__weight=value.bfloat16())
    assert np.array_equal(weights.get("a.weight"), value.numpy())
    assert np.array_equal(weights.get("b.weight").astype(np.float32), value.bfloat16().float().numpy())
    with pytest.raises(NotFound, match=r"a\.weight"):
        weights.get("c.weight")


@pytest.mark.parametrize("dtype", [torch.uint32, torch.int32, torch.uint8, torch.float8_e4m3fn])
def test_packed_codes_are_no_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    codes = torch.zeros(64, 8, dtype=torch.uint8).to(dtype)
    weights = _written(tmp_path, q_proj__weight=codes, q_proj__scales=torch.ones(64, 1))
    with pytest.raises(Unsupported, match=r"'q_proj\.weight' is stored as packed codes"):
        weights.get("q_proj.weight")
    assert weights.get("q_proj.scales").shape == (64, 1)
    assert weights.nbytes() == 64 * 8 * codes.element_size() + 64 * 4
    assert weights.nbytes(2) == 64 * 8 * codes.element_size() + 64 * 2, "codes stay as wide as they are"


def test_a_head_of_its_own(tmp_path: Path) -> None:
    embedding = torch.randn(7, 4).bfloat16()
    for head, own in ((embedding.clone(), False), (embedding + 1, True), (None, False)):
        tensors = {"model__embed_tokens__weight": embedding} | ({} if head is None else {"lm_head__weight": head})
        _written(tmp_path, **tensors)
        assert has_own_head(tmp_path) is own
