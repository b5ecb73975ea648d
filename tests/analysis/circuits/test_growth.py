"""Growth with scale: figures on paper, and a family of toys whose circuit is known."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.circuits import Circuit, Origin, Space, growth, n_parameters, reuse
from probewire.analysis.circuits.growth import _slope
from probewire.analysis.tasks import FittedTask, accuracy, repeated_tokens_task
from probewire.clients import Client, InvalidArgument
from probewire.server.worker.inprocess import InProcessService
from tests.analysis.circuits.toy_family import SIZES, VOCABULARY, train_toy

SPACE = Space(tuple(f"z.{layer}" for layer in range(5)), None, "head", 4)


def of(*heads: int) -> Circuit:
    mask = np.zeros(SPACE.size, dtype=bool)
    mask[list(heads)] = True
    return Circuit.of(SPACE, mask.reshape(SPACE.shape), np.ones(SPACE.shape), Origin(model_hash="m"))


def test_a_slope_and_its_interval() -> None:
    x = np.log([10.0, 100.0, 1000.0])
    exact = _slope(x, 0.5 * x)
    assert (exact.value, exact.low, exact.high) == pytest.approx((0.5, 0.5, 0.5))
    assert exact.told.startswith("units grow as parameters^0.50")
    bent = _slope(x, np.array([0.0, 1.0, 0.0]))
    # By hand: slope 0; residuals −1/3, 2/3, −1/3 with one degree of freedom; t(.975, 1) = 12.706.
    error = np.sqrt((6 / 9) / 1 / ((x - x.mean()) ** 2).sum())
    assert (bent.value, bent.high) == pytest.approx((0.0, 12.7062 * error), rel=1e-4)
    assert bent.told.startswith("no slope distinguishable from 0")
    assert _slope(x[:2], x[:2]).told == "2 models give a difference and no slope"


def test_reuse_beside_chance() -> None:
    pair, other, apart = of(0, 1, 4), of(0, 1, 5), of(16, 17, 18)
    same, none, _ = reuse({"a": pair, "b": other, "c": apart}, n=400)
    assert same.jaccard == pytest.approx(2 / 4)
    assert same.ratio > 1.5
    assert (none.jaccard, none.expected, none.p_value) == (0.0, 0.0, 1.0)
    with pytest.raises(InvalidArgument, match="of one model over one space"):
        reuse({"a": pair, "b": other.with_origin(model_hash="n")})


def test_a_model_that_cannot_do_it_has_no_circuit(tiny32: Client) -> None:
    found = growth({"random": tiny32}, _made, n=24, seeds=1)
    assert not found.models[0].circuits
    assert "cannot do it" in repr(found)
    with pytest.raises(InvalidArgument, match="0 of 1 models can do the task"):
        _ = found.slope
    for options, match in (({"unit": "edge"}, "allowed: head, neuron"), ({}, "needs a model")):
        with pytest.raises(InvalidArgument, match=match):
            growth({} if not options else {"a": tiny32}, _made, **options)


def test_parameters_are_counted(tiny32: Client) -> None:
    # By hand: 261 · 64 in and out; in each of 3 layers q and o of 64 · 64, k and v of 64 · 32, three of 64 · 96.
    layers = 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96)
    info, names = tiny32.describe(), tiny32.weight_names()
    assert n_parameters(info, names) == n_parameters(info) == layers + 2 * 261 * 64
    tied = [name for name in names if name != "lm_head.weight"]
    assert n_parameters(info, tied) == layers + 261 * 64, "a head that is the embedding counts once"


def test_repeated_tokens() -> None:
    task = repeated_tokens_task(range(64), 20, length=8, first=99, seed=3)
    for example in task.examples:
        k = int(example.example.labels["k"])
        assert example.clean[0] == 99
        assert example.clean[9:] == example.clean[1 : 1 + k]
        assert example.correct == (example.clean[1 + k],)
        assert example.wrong[0] in example.clean[1 : 1 + k]
        assert len(example.corrupt) == len(example.clean)
        assert not set(example.corrupt[1:9]) & set(example.clean[1:])
        assert example.corrupt[9:] == example.clean[9:]
    assert task.examples == repeated_tokens_task(range(64), 20, length=8, first=99, seed=3).examples
    with pytest.raises(InvalidArgument, match="33 distinct tokens"):
        repeated_tokens_task(range(20), 4)


def _made(_: Client, model: str, seed: int) -> FittedTask:
    return repeated_tokens_task(VOCABULARY, 24, length=12, first=256, seed=seed, model=model)


@pytest.mark.slow
@pytest.mark.timeout(900)  # seconds; three trainings of ten to twenty of a free core, on a busy machine
def test_a_family_whose_circuit_is_known(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Toys of three sizes, trained here, keep the copying with four heads at most, and heads that do induction are those."""
    clients: dict[str, Client] = {}
    for d_model in SIZES:
        folder = train_toy(tmp_path_factory.mktemp("toy"), d_model)
        clients[f"d{d_model}"] = Client.inprocess(InProcessService.create(str(folder), dtype="float32", device="cpu"))
    found = growth(clients, _copying, n=12, seeds=2, areas=False, vocabulary=VOCABULARY)
    for model in found.models:
        client = clients[model.name]
        assert accuracy(client, _copying(client, "", 7)).accuracy == 1.0
        assert max(model.sizes) <= 4
        assert min(circuit.origin.faithfulness or 0.0 for circuit in model.circuits) >= 0.8
        assert "induction" in model.roles.values()
    assert found.slope.models == 3
    for client in clients.values():
        client.close()


def _copying(_: Client, model: str, seed: int) -> FittedTask:
    return repeated_tokens_task(VOCABULARY, 12, length=16, first=256, seed=seed, model=model)
