"""The Circuit value and its JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from probewire.analysis.circuits.circuit import Circuit, Origin
from probewire.analysis.circuits.space import Space, Unit
from probewire.clients import InvalidArgument

SPACE = Space(("mlp_act.0", "mlp_act.1"), 3, "unit", 4)
ORIGIN = Origin(
    "m", "abc", "ioi", "logit difference", "patch", "RelP", 0.81, 0.1, 1.0, 16, "2026-11-21", {"dtype": "float32"}
)


def example() -> Circuit:
    scores = np.arange(24.0).reshape(2, 3, 4)
    mask = np.zeros((2, 3, 4), dtype=bool)
    mask[0, 1, 2] = mask[1, 2, 3] = mask[1, 0, 0] = True
    return Circuit.of(SPACE, mask, scores, ORIGIN)


def test_units_are_sorted_by_score() -> None:
    circuit = example()
    assert circuit.units == (Unit("mlp_act.1", 2, unit=3), Unit("mlp_act.1", 0, unit=0), Unit("mlp_act.0", 1, unit=2))
    assert circuit.scores == (23.0, 12.0, 6.0)
    assert circuit.mask.sum() == 3
    assert circuit.mask[0, 1, 2]
    assert "3 of 24 units, faithfulness 0.81 (patch ablation)" in repr(circuit)


def test_json_keeps_everything(tmp_path: Path) -> None:
    circuit = example()
    found = Circuit.load(circuit.save(tmp_path / "circuit.json"))
    assert (found.space, found.units, found.scores, found.origin) == (SPACE, circuit.units, circuit.scores, ORIGIN)
    assert json.loads((tmp_path / "circuit.json").read_text())["origin"]["model_hash"] == "abc"
    assert circuit.with_origin(task="other").origin.task == "other"
    assert circuit.origin.task == "ioi"


def test_what_is_no_circuit(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="the circuit is empty"):
        Circuit.of(SPACE, np.zeros(SPACE.shape, dtype=bool), np.zeros(SPACE.shape))
    unit = Unit("mlp_act.0", 0, unit=0)
    with pytest.raises(InvalidArgument, match="is in the circuit twice"):
        Circuit(SPACE, (unit, unit), (1.0, 1.0))
    with pytest.raises(InvalidArgument, match="1 units and 2 scores"):
        Circuit(SPACE, (unit,), (1.0, 1.0))
    with pytest.raises(InvalidArgument, match="no unit of this space"):
        Circuit(SPACE, (Unit("z.0"),), (1.0,))
    data = example().to_json()
    for changes, match in [({"format": "x"}, "not a circuit of ours"), ({"units": [{"place": 1}]}, "damaged")]:
        with pytest.raises(InvalidArgument, match=match):
            Circuit.from_json({**data, **changes})
    for text, match in [("nothing", "is not JSON"), ("[]", "holds a list")]:
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InvalidArgument, match=match):
            Circuit.load(tmp_path / "bad.json")
