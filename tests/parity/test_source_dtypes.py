"""Rows that come in another dtype than the model's: they are cast, whole or narrowed to heads and units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from probewire.protos.edits import Inline, Replace
from probewire.protos.spec import Capture, Hook, Plan, Tensor, Where
from tests.parity.harness import load, run
from tests.tiny_models import tiny_checkpoint

TOKENS = [5, 9, 200, 31, 7]


@pytest.mark.parametrize("backend", ["torch", "mlx"])
@pytest.mark.parametrize("sent", ["float64", "float32", "float16"])
def test_inline_rows_of_any_dtype(backend: str, sent: str, tmp_path: Path) -> None:
    model = load(backend, tiny_checkpoint("llama", tmp_path))
    rows = np.arange(16, dtype=sent).reshape(1, 1, 16) / 16
    whole = np.arange(64, dtype=sent).reshape(1, 64) / 64
    at = Where(positions=(2,))
    plan = Plan(
        (
            Hook("z.1", Replace(Inline(Tensor.of(rows)), heads=(3,)), Capture(), at),
            Hook("mlp_out.1", Replace(Inline(Tensor.of(whole[:, :4])), units=(0, 7, 8, 60)), Capture(), at),
            Hook("resid_post.1", Replace(Inline(Tensor.of(whole))), Capture(), at),
        )
    )
    found = {site: captured.values for (_, site, _), captured in run(model, TOKENS, plan).items()}
    np.testing.assert_array_equal(found["z.1"][0, 3], rows[0, 0].astype(np.float32))
    np.testing.assert_array_equal(found["mlp_out.1"][0, [0, 7, 8, 60]], whole[0, :4].astype(np.float32))
    np.testing.assert_array_equal(found["resid_post.1"], whole.astype(np.float32))
    model.close()
