"""Source rows pair with positions in the order in which the positions are listed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from probewire.backends import reference
from probewire.protos.edits import Inline, Replace
from probewire.protos.spec import Capture, Hook, Plan, Where
from tests.parity.harness import load, run
from tests.tiny_models import tiny_checkpoint

TOKENS = [7, 99, 12, 200, 31, 64]


@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_rows_pair_as_listed(name: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint("llama", tmp_path)
    rows = np.arange(2 * 64, dtype=np.float32).reshape(2, 64)
    hook = Hook("resid_post.1", edit=Replace(Inline(rows)), capture=Capture(), where=Where(positions=(-1, 2)))
    found = run(load(name, folder), TOKENS, Plan((hook,)))[0, "resid_post.1", ""]
    assert found.positions == (2, 5)
    assert np.array_equal(found.values, rows[[1, 0]])
    expected = reference.run(reference.load(folder), TOKENS, Plan((hook,))).captures[0, "resid_post.1", ""]
    assert np.array_equal(expected.values, rows[[1, 0]])
