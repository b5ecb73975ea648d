"""A circuit as a variant: its hooks are those that faithfulness was measured with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from probewire.analysis.circuits import (
    Circuit,
    JoinedSpace,
    Unit,
    ablated,
    head_space,
    install,
    make_space,
    neuron_space,
)
from probewire.clients import Client, Condition, Delta, InvalidArgument, LogitDifference, Variant

CLEAN, CORRUPT, METRIC = "abcde", "abxde", LogitDifference((101,), (120,))


def half(tiny: Client) -> Circuit:
    info = tiny.describe()
    space = JoinedSpace((head_space(info), make_space(info, "mlp_out")))
    mask = np.arange(space.size) % 2 == 0
    return Circuit.of(space, mask, np.ones(space.size))


@pytest.mark.parametrize("outside", ["zero", "mean"])
def test_its_plan_gives_what_the_circuit_was_judged_by(tiny: Client, tmp_path: Path, outside: str) -> None:
    circuit = half(tiny)
    reference = ["hello there", "abc", "xyz"] if outside == "mean" else None
    options = {} if reference is None else {"reference": reference}
    judge = ablated(tiny, [CLEAN], [CORRUPT], METRIC, circuit.space, ablation=outside, progress=False, **options)
    variant = install(tiny, circuit, outside=outside, reference=reference, name="half")
    assert not variant.deltas
    logits = tiny.run(CLEAN, hooks=list(variant.plan.hooks), capture=["logits"])["logits"][-1]
    assert logits[101] - logits[120] == pytest.approx(float(judge.means([circuit.mask])[0]), abs=1e-5)
    tiny.load_variant(variant, name=f"half-{outside}")
    served = tiny.run(CLEAN, variant=f"half-{outside}", capture=["logits"])["logits"][-1]
    assert served == pytest.approx(logits, abs=1e-6), "served by its name it is the same"
    assert variant.manifest.circuit == {"id": circuit.id}
    assert variant.manifest.base.model_hash == tiny.describe().model_hash
    assert Variant.load(variant.save(tmp_path / outside)).hash == variant.hash


def test_a_gate_is_on_every_hook(tiny: Client) -> None:
    gate = Condition(1e9, "embed", direction=np.ones(64, np.float32))
    variant = install(tiny, half(tiny), outside="zero", gate=gate)
    assert all(hook.where.when == gate for hook in variant.plan.hooks)
    plain = tiny.run(CLEAN, capture=["logits"])["logits"]
    closed = tiny.run(CLEAN, hooks=list(variant.plan.hooks), capture=["logits"])["logits"]
    assert (plain == closed).all(), "no row passes the gate"


def test_deltas_confined_to_a_circuit(tiny: Client) -> None:
    circuit = Circuit(head_space(tiny.describe()), (Unit("z.0", head=1),), (1.0,))
    given = Variant({"w_o.0": Delta(np.ones((64, 1)), np.ones((1, 64)))})
    found = install(tiny, circuit, outside="keep", deltas=given, name="confined")
    assert np.flatnonzero(found.dense("w_o.0").any(axis=1)).tolist() == list(range(16, 32))
    assert found.manifest.name == "confined"


def test_what_cannot_be_installed(tiny: Client) -> None:
    info, circuit = tiny.describe(), half(tiny)
    space = neuron_space(info, 5)
    placed = Circuit(space, (Unit("mlp_act.0", 1, 2),), (1.0,))
    everything = Circuit.of(circuit.space, np.ones(circuit.space.size, dtype=bool), np.ones(circuit.space.size))
    given = Variant({"w_o.0": Delta(np.ones((64, 1)), np.ones((1, 64)))})
    gate = Condition(1e9, "embed", direction=np.ones(64, np.float32))
    for what, options, match in (
        (placed, {"outside": "zero"}, "prompts with 5 tokens"),
        (everything, {"outside": "zero"}, "nothing outside it"),
        (circuit, {"outside": "mean"}, "needs reference="),
        (circuit, {"outside": "zero", "reference": ["a"]}, "needs reference="),
        (circuit, {"outside": "keep"}, "give deltas="),
        (circuit, {"outside": "all"}, "allowed: mean, zero, keep"),
        (circuit, {"outside": "keep", "deltas": given, "gate": gate}, "weights have no gate"),
        (circuit.with_origin(model_hash="x", model="other"), {"outside": "zero"}, "another model"),
    ):
        with pytest.raises(InvalidArgument, match=match):
            install(tiny, what, **options)
