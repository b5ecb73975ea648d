"""SAEs on the disk that sae-lens would load as others than they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from probewire.analysis.sae.model.loaded import load
from probewire.clients import InvalidArgument
from tests.saes import write_sae


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"normalize_activations": "expected_average_only_in"}, "not finished"),
        ({"normalize_activations": "covariance_whitening"}, "not finished"),
        ({"normalize_activations": True, "metadata": {}}, r"not finished.*\(expected_average_only_in\)"),
        ({"activation_fn_str": "tanh-relu", "metadata": {}}, "activation_fn 'tanh-relu'"),
    ],
)
def test_refused(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    folder = write_sae(tmp_path / "sae", "standard")
    assert load(folder).architecture == "standard"
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(InvalidArgument, match=why):
        load(folder)
