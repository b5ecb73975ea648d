"""A circuit's weights changed, against the hooks that do the same, and to the bit outside it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probewire.analysis.circuits import Circuit, JoinedSpace, Unit, head_space, make_space, neuron_space
from probewire.analysis.editing.circuit import transforms
from probewire.analysis.editing.circuit.columns import edit_circuit
from probewire.analysis.editing.erase import leace
from probewire.analysis.editing.writers import writer
from probewire.clients import (
    Client,
    Constant,
    Hook,
    InvalidArgument,
    ProjectOut,
    Replace,
    Tensor,
    Unsupported,
    ablate,
    hook,
)
from tests.analysis.editing.served import as_hooks
from tests.parity.opened import OTHER, TOKENS, Opened, gap

NEURONS, HEAD = (3, 5, 40), 2
RNG = np.random.default_rng(6)


@pytest.fixture(scope="module")
def opened_here(tmp_path_factory: pytest.TempPathFactory) -> Any:
    made = Opened(tmp_path_factory.mktemp("circuit"))
    yield made
    made.close()


@pytest.fixture(params=["torch", "mlx"])
def client(request: pytest.FixtureRequest, opened_here: Opened) -> Client:
    return opened_here("llama", request.param, "float32")


def _circuit(client: Client) -> Circuit:
    info = client.describe()
    units = [Unit("z.1", head=HEAD), *(Unit("mlp_act.0", unit=j) for j in NEURONS)]
    return Circuit(
        JoinedSpace((head_space(info), neuron_space(info))),
        tuple(units),
        tuple(float(9 - i) for i in range(len(units))),
    )


def _block(client: Client, site: str) -> Circuit:
    return Circuit(make_space(client.describe(), [site]), (Unit(site),), (1.0,))


def _logits(client: Client, hooks: list[Hook]) -> np.ndarray[Any, Any]:
    return client.run(TOKENS, hooks=hooks, capture="logits", progress=False)["logits"]


def test_a_knocked_out_circuit_is_its_units_ablated(client: Client) -> None:
    found = edit_circuit(client, _circuit(client), transforms.Scale(0.0), name="without")
    expected = [ablate("z.1", heads=[HEAD]), ablate("mlp_act.0", units=NEURONS)]
    assert gap(_logits(client, as_hooks(found.variant)), _logits(client, expected)) <= 1e-5
    assert gap(_logits(client, []), _logits(client, expected)) > 1e-3
    assert found.columns == {"w_o.1": 16, "w_down.0": 3}
    outside = np.setdiff1d(np.arange(96), NEURONS)
    assert not found.variant.deltas["w_down.0"].dense()[outside].any(), "to the bit"
    W = writer(client, "w_down", 0).weight
    assert found.relative_norms["w_down.0"] == pytest.approx(np.linalg.norm(W[:, list(NEURONS)]) / np.linalg.norm(W))
    assert found.variant.manifest.circuit["id"] == _circuit(client).id
    doubled = edit_circuit(client, _circuit(client), transforms.Scale(2.0)).variant
    assert gap(doubled.deltas["w_o.1"].dense(), -found.variant.deltas["w_o.1"].dense()) <= 1e-6


def test_a_direction_that_the_circuit_no_longer_writes(client: Client) -> None:
    directions = RNG.normal(size=(2, 64))
    found = edit_circuit(client, _block(client, "mlp_out.1"), transforms.ProjectOut(directions))
    expected = [hook("mlp_out.1", ProjectOut(Tensor.of(directions)))]
    assert gap(_logits(client, as_hooks(found.variant)), _logits(client, expected)) <= 1e-5
    part = edit_circuit(client, _circuit(client), transforms.ProjectOut(directions)).variant
    W = writer(client, "w_down", 0).weight + part.deltas["w_down.0"].dense().T
    assert np.abs(directions @ W[:, list(NEURONS)]).max() <= 1e-5 * np.abs(directions @ W).max()
    assert {delta.rank for delta in part.deltas.values()} == {2}


def test_a_concept_erased_from_what_the_circuit_writes(client: Client) -> None:
    rows = np.concatenate([client.run(t, capture="mlp_out.1", progress=False)["mlp_out.1"] for t in (TOKENS, OTHER)])
    many = np.repeat(rows, 30, axis=0) + 0.05 * RNG.normal(size=(len(rows) * 30, 64))
    eraser = leace(many, (many[:, 3] > many[:, 3].mean()).astype(int))
    found = edit_circuit(client, _block(client, "mlp_out.1"), transforms.Erase(eraser))
    assert gap(_logits(client, as_hooks(found.variant)), _logits(client, eraser.hooks("mlp_out.1"))) <= 1e-5
    assert found.variant.deltas["w_down.1"].bias is not None


def test_a_circuit_put_to_its_mean(client: Client) -> None:
    found = edit_circuit(client, _circuit(client), transforms.Mean([TOKENS, OTHER[:9]]))
    runs = [client.run(t, capture=["mlp_act.0", "z.1"], progress=False) for t in (TOKENS, OTHER[:9])]
    neurons = np.concatenate([run["mlp_act.0"] for run in runs]).mean(axis=0)[list(NEURONS)]
    head = np.concatenate([run["z.1"] for run in runs]).mean(axis=0)[HEAD]
    expected = [
        hook("mlp_act.0", Replace(Constant(Tensor.of(neurons)), units=NEURONS)),
        hook("z.1", Replace(Constant(Tensor.of(head)), heads=(HEAD,))),
    ]
    assert gap(_logits(client, as_hooks(found.variant)), _logits(client, expected)) <= 1e-5


def test_a_direction_taken_from_every_writer(client: Client) -> None:
    found = edit_circuit(client, _circuit(client), transforms.Orthogonalise(RNG.normal(size=64)))
    assert len(found.variant.deltas) == 2 * client.describe().n_layers
    assert found.variant.manifest.method == "edit_circuit: orthogonalise"


def test_facts_are_written_in_the_circuits_own_columns(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values as they were found; the change meets them with the circuit's neurons alone."""
    key, delta = RNG.normal(size=96), RNG.normal(size=64)

    class Value:
        pass

    value: Any = Value()
    value.key, value.delta = key, delta
    monkeypatch.setattr("probewire.analysis.editing.circuit.columns.target_value", lambda *_, **__: value)
    fact: Any = object()
    found = edit_circuit(client, _circuit(client), transforms.Retarget([fact])).variant
    assert set(found.deltas) == {"w_down.0"}
    change = found.deltas["w_down.0"].dense().T
    np.testing.assert_allclose(change @ key, delta, rtol=1e-5)
    assert not change[:, np.setdiff1d(np.arange(96), NEURONS)].any(), "to the bit"


def test_refusals(opened_here: Opened) -> None:
    client, other = (opened_here(family, "torch", "float32") for family in ("llama", "gemma2"))
    with pytest.raises(InvalidArgument, match="owns no columns"):
        edit_circuit(
            client,
            Circuit(make_space(client.describe(), ["mlp_out.1"], part="unit"), (Unit("mlp_out.1", unit=3),), (1.0,)),
            transforms.Scale(0.0),
        )
    with pytest.raises(Unsupported, match="norms behind its writers"):
        edit_circuit(other, _block(other, "mlp_out.1"), transforms.ProjectOut(np.ones(64)))
    with pytest.raises(InvalidArgument, match="8 wide"):
        edit_circuit(client, _block(client, "mlp_out.1"), transforms.ProjectOut(np.ones(8)))
