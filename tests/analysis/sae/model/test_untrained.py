"""The control: the shape and class of an SAE, the weights that sae-lens begins with, and no result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probewire.analysis.sae.model.loaded import load, require_trained
from probewire.analysis.sae.model.untrained import untrained_like
from probewire.clients import FailedPrecondition, InvalidArgument
from tests.analysis.sae.conftest import SITE

ARCHITECTURES: dict[str, dict[str, Any]] = {"standard": {}, "topk": {"k": 4}, "jumprelu": {}, "gated": {}}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_control_has_the_shape_and_is_no_result(name: str, tmp_path: Path, save_sae: Callable[..., Path]) -> None:
    sae = load(save_sae(name, 12, 30, **ARCHITECTURES[name]))
    require_trained(sae)
    before = torch.random.get_rng_state()
    control = load(untrained_like(sae, tmp_path / "control", seed=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (control.d_in, control.d_sae, control.architecture, control.site) == (12, 30, name, SITE)
    assert not np.array_equal(control.w_dec, sae.w_dec)
    np.testing.assert_allclose(np.linalg.norm(control.w_dec, axis=1), 1, rtol=1e-5)
    assert not control.trained
    with pytest.raises(FailedPrecondition, match="allow_untrained"):
        require_trained(control)
    again = load(untrained_like(sae, tmp_path / "again", seed=1))
    assert np.array_equal(again.w_dec, control.w_dec)
    other = load(untrained_like(sae, tmp_path / "other", seed=2))
    assert not np.array_equal(other.w_dec, control.w_dec)
    if name == "topk":
        assert (control.encode(np.random.default_rng(0).normal(size=(9, 12))) > 0).sum(axis=1).max() == 4


def test_a_folder_in_use_is_refused(tmp_path: Path, save_sae: Callable[..., Path]) -> None:
    (tmp_path / "something").touch()
    with pytest.raises(InvalidArgument, match="not empty"):
        untrained_like(load(save_sae("standard", 12, 30, seed=5)), tmp_path)
