"""A circuit's rows and columns, and deltas confined to them."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

from probewire.analysis.circuits import (
    Circuit,
    JoinedSpace,
    Origin,
    Space,
    Unit,
    circuit_weights,
    head_space,
    make_space,
    neuron_space,
)
from probewire.clients import Client, Delta, InvalidArgument, Replace, Variant, Zeros, hook
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint

WIDTHS = {
    "w_q": (64, 64),
    "w_k": (32, 64),
    "w_v": (32, 64),
    "w_o": (64, 64),
    "w_gate": (96, 64),
    "w_up": (96, 64),
    "w_down": (64, 96),
}
"""[d_out, d_in] of the tiny llama: 4 heads of 16, 2 of keys and values, 96 neurons."""


def of(space: Space | JoinedSpace, *units: Unit) -> Circuit:
    return Circuit(space, units, tuple(float(len(units) - i) for i in range(len(units))))


def variant(names: list[str], rank: int = 3) -> Variant:
    rng = np.random.default_rng(0)
    deltas = {}
    for name in names:
        d_out, d_in = WIDTHS[name.split(".")[0]]
        deltas[name] = Delta(rng.normal(size=(d_in, rank)), rng.normal(size=(rank, d_out)), rng.normal(size=d_out))
    return Variant(deltas)


def test_which_rows_and_columns(tiny32: Client) -> None:
    info = tiny32.describe()
    space = JoinedSpace((head_space(info), neuron_space(info)))
    mask = circuit_weights(tiny32, of(space, Unit("z.1", head=2), Unit("mlp_act.0", unit=5), Unit("mlp_act.0", unit=3)))
    assert {name: (part.side, part.index) for name, part in mask.parts.items()} == {
        "w_q.1": ("rows", tuple(range(32, 48))),
        "w_o.1": ("columns", tuple(range(32, 48))),
        "w_gate.0": ("rows", (3, 5)),
        "w_up.0": ("rows", (3, 5)),
        "w_down.0": ("columns", (3, 5)),
    }
    assert mask.parts["w_gate.0"].scores == (1.0, 2.0)
    assert mask.parts["w_down.0"].units == ("mlp_act.0 #5", "mlp_act.0 #3")


def test_keys_and_values_are_shared(tiny32: Client) -> None:
    info = tiny32.describe()
    assert (info.n_heads, info.n_kv_heads) == (4, 2)
    circuit = of(head_space(info), Unit("z.1", head=2))
    mask = circuit_weights(tiny32, circuit)
    assert "w_k.1" not in mask.parts
    assert mask.shared["w_k.1"].index == mask.shared["w_v.1"].index == tuple(range(16, 32))
    assert mask.shared["w_k.1"].shared_with == ("z.1 head 3",)
    assert any("2 heads read each key" in note for note in mask.notes)
    taken = circuit_weights(tiny32, circuit, include_shared=True)
    assert taken.parts["w_v.1"].index == tuple(range(16, 32))
    assert taken.shared == {}
    both = circuit_weights(tiny32, of(head_space(info), Unit("z.1", head=2), Unit("z.1", head=3)))
    assert both.shared["w_k.1"].shared_with == ()


def test_a_confined_delta_is_zero_outside_to_the_bit_and_the_same_inside(tiny32: Client) -> None:
    info = tiny32.describe()
    space = JoinedSpace((head_space(info), neuron_space(info)))
    circuit = of(space, Unit("z.1", head=2), Unit("mlp_act.0", unit=5), Unit("mlp_act.0", unit=90))
    mask = circuit_weights(tiny32, circuit, include_shared=True)
    whole = variant(["w_q.1", "w_k.1", "w_o.1", "w_gate.0", "w_down.0", "w_up.2"])
    kept = mask.confined(whole)
    assert set(kept.deltas) == {"w_q.1", "w_k.1", "w_o.1", "w_gate.0", "w_down.0"}, "layer 2 is not in the circuit"
    for name, delta in kept.deltas.items():
        inside = mask.dense(name, delta.d_out, delta.d_in)
        assert (kept.dense(name).T[~inside] == 0.0).all()
        assert kept.dense(name).T[inside] == pytest.approx(whole.dense(name).T[inside], abs=1e-7)
        assert delta.rank == whole.deltas[name].rank
    assert kept.deltas["w_o.1"].bias is None, "a bias belongs to rows"
    assert (np.flatnonzero(kept.deltas["w_gate.0"].bias) == [5, 90]).all()
    assert kept.manifest.circuit == {"id": circuit.id}
    assert mask.confined(kept).deltas["w_q.1"] == kept.deltas["w_q.1"], "confining again changes nothing"


def test_whole_blocks_coordinates_and_positions(tiny32: Client) -> None:
    info = tiny32.describe()
    mask = circuit_weights(tiny32, of(make_space(info, "mlp_out"), Unit("mlp_out.2")))
    assert {name: part.side for name, part in mask.parts.items()} == dict.fromkeys(
        ("w_gate.2", "w_up.2", "w_down.2"), "all"
    )
    assert mask.dense("w_up.2", 96, 64).all()
    rows = circuit_weights(tiny32, of(make_space(info, "mlp_out", part="unit"), Unit("mlp_out.2", unit=7)))
    assert (rows.parts["w_down.2"].side, rows.parts["w_down.2"].index) == ("rows", (7,))
    placed = circuit_weights(tiny32, of(neuron_space(info, 4), Unit("mlp_act.0", 1, 7), Unit("mlp_act.0", 3, 7)))
    assert placed.parts["w_gate.0"].index == (7,)
    assert "weights have none" in placed.notes[0]


def test_what_has_no_weights_or_is_not_of_this_model(tiny32: Client) -> None:
    info = tiny32.describe()
    with pytest.raises(InvalidArgument, match=r"resid_post\.1 owns no rows or columns"):
        circuit_weights(tiny32, of(make_space(info, "resid_post"), Unit("resid_post.1")))
    with pytest.raises(InvalidArgument, match="the circuit is of model other"):
        circuit_weights(tiny32, Circuit(head_space(info), (Unit("z.0", head=0),), (1.0,), Origin(model_hash="other")))
    mixed = JoinedSpace((neuron_space(info), make_space(info, "mlp_out", part="unit")))
    with pytest.raises(InvalidArgument, match=r"rows and columns of w_down\.1"):
        circuit_weights(tiny32, of(mixed, Unit("mlp_act.1", unit=0), Unit("mlp_out.1", unit=0)))
    mask = circuit_weights(tiny32, of(head_space(info), Unit("z.1", head=2)))
    with pytest.raises(InvalidArgument, match=r"none of the variant's weights \(w_up.0\)"):
        mask.confined(variant(["w_up.0"]))
    with pytest.raises(InvalidArgument, match="rows up to 47, and this weight has 40"):
        mask.dense("w_q.1", 40, 64)


def test_neurons_taken_out_by_served_weights_are_neurons_ablated_by_hooks(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """−W_down whole, confined to the circuit and served, is the hook that sets those neurons to zero."""
    folder = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    down = load_file(folder / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    with Client.inprocess(InProcessService.create(str(folder), dtype="float32", device="cpu")) as client:
        circuit = of(neuron_space(client.describe()), Unit("mlp_act.1", unit=5), Unit("mlp_act.1", unit=90))
        whole = Variant({"w_down.1": Delta(np.eye(96), -down.T), "w_q.0": Delta(np.ones((64, 1)), np.ones((1, 64)))})
        client.load_variant(circuit_weights(client, circuit).confined(whole), name="without")
        served = client.run("hello", variant="without", capture=["logits"])["logits"]
        by_hook = client.run("hello", hooks=[hook("mlp_act.1", Replace(Zeros(), units=(5, 90)))], capture=["logits"])[
            "logits"
        ]
        assert served == pytest.approx(by_hook, abs=1e-5 * float(np.abs(by_hook).max()))
        assert not np.allclose(served, client.run("hello", capture=["logits"])["logits"], atol=1e-3)
