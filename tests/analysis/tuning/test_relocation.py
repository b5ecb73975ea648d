"""A circuit found again in training: its scores and faithfulness against hooks written here, and a mask that moves leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probewire.analysis.circuits.circuit import Circuit
from probewire.analysis.circuits.joined import JoinedSpace
from probewire.analysis.circuits.space import Unit, head_space, make_space, neuron_space
from probewire.analysis.circuits.weights import circuit_weights
from probewire.analysis.tuning import tuning as module
from probewire.analysis.tuning.base import Base, load_base
from probewire.analysis.tuning.circuit_mask import circuit_parts
from probewire.analysis.tuning.config import TuneConfig
from probewire.analysis.tuning.confinement import Confinement
from probewire.analysis.tuning.examples import TokenExample, TrainExample, to_tokens
from probewire.analysis.tuning.relocation import faithfulness, located, unit_scores
from probewire.analysis.tuning.tuning import tune
from probewire.clients import Client
from probewire.protos.errors import InvalidArgument

CONFIG = TuneConfig(
    method="circuit", steps=9, batch_size=4, lr=2e-2, rank=2, checkpoints=0, relocalise_every=3, drift_examples=4
)
UNITS = (Unit("mlp_act.0", unit=5), Unit("mlp_act.1", unit=17), Unit("mlp_act.2", unit=90), Unit("z.1", head=2))


@pytest.fixture(scope="module")
def circuit(client: Client) -> Circuit:
    info = client.describe()
    return Circuit(JoinedSpace((neuron_space(info), head_space(info))), UNITS, (1.0,) * len(UNITS))


@pytest.fixture(scope="module")
def base(folder: Path) -> Base:
    return load_base(folder)


@pytest.fixture(scope="module")
def examples(base: Base, lessons: list[TrainExample]) -> list[TokenExample]:
    longer = TrainExample("well then, and a tree whose name is oak is", " tall")
    return [to_tokens(base.tokenizer, example) for example in (*lessons[:2], longer)]


@contextmanager
def changed(base: Base, weight: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    handle = base.module(weight).register_forward_pre_hook(lambda _, inputs: (change(inputs[0]),))
    yield
    handle.remove()


def log_p(base: Base, example: TokenExample) -> float:
    with torch.no_grad():
        said = base.model(torch.tensor([example.ids])).logits[0].double().log_softmax(-1)
    return sum(float(said[at - 1, example.ids[at]]) for at in range(example.answer_at, len(example.ids)))


def test_scores_are_what_scaling_a_unit_does(base: Base, circuit: Circuit, examples: list[TokenExample]) -> None:
    """Σ a · ∂F/∂a is the derivative of F by a factor of the unit, here as a difference quotient, one example at a time."""
    found = unit_scores(base, circuit, examples)
    assert found.shape == (circuit.space.size,)
    for unit in (UNITS[1], UNITS[3]):
        weight, span = ("w_down.1", slice(17, 18)) if unit.head is None else ("w_o.1", slice(32, 48))
        slopes: list[float] = []
        for example in examples:
            values: list[float] = []
            for factor in (1.02, 0.98):

                def scaled(x: torch.Tensor, factor: float = factor, span: slice = span) -> torch.Tensor:
                    x = x.clone()
                    x[:, 1:, span] *= factor
                    return x

                with changed(base, weight, scaled):
                    values.append(log_p(base, example))
            slopes.append((values[0] - values[1]) / 0.04)
        assert found[circuit.space.index_of(unit)] == pytest.approx(np.abs(slopes).mean(), rel=2e-2)
    assert not any(value.requires_grad for value in base.model.parameters())


def test_found_again_it_has_as_many_neurons_and_as_many_heads(circuit: Circuit) -> None:
    scores = np.arange(circuit.space.size, dtype=float)
    found = located(circuit, scores)
    assert [unit.name for unit in found.units] == ["z.2 head 3", "mlp_act.2 #95", "mlp_act.2 #94", "mlp_act.2 #93"]


def test_faithfulness_is_that_of_means_put_in_by_hand(
    base: Base, circuit: Circuit, examples: list[TokenExample]
) -> None:
    everything = Circuit.of(circuit.space, np.ones(circuit.space.shape, dtype=bool), np.ones(circuit.space.shape))
    assert faithfulness(base, everything, examples) == pytest.approx(1, abs=1e-5)
    weights = [f"{name}.{layer}" for name in ("w_down", "w_o") for layer in range(3)]
    rows: dict[str, list[torch.Tensor]] = {weight: [] for weight in weights}
    for weight in weights:
        for example in examples:

            def seen(x: torch.Tensor, weight: str = weight) -> torch.Tensor:
                rows[weight].append(x[0])
                return x

            with changed(base, weight, seen):
                log_p(base, example)
    kept = {"w_down.0": [5], "w_down.1": [17], "w_down.2": [90], "w_o.1": list(range(32, 48))}

    def value(keep: dict[str, list[int]]) -> float:
        total = 0.0
        for example in examples:
            handles = []
            for weight in weights:
                mean, own = torch.cat(rows[weight]).mean(0), keep.get(weight, [])

                def put(_: Any, inputs: Any, mean: torch.Tensor = mean, own: Any = own) -> Any:
                    x = mean.expand_as(inputs[0]).clone()
                    x[..., own] = inputs[0][..., own]
                    return (x,)

                handles.append(base.module(weight).register_forward_pre_hook(put))
            total += log_p(base, example)
            for handle in handles:
                handle.remove()
        return total / len(examples)

    full = float(np.mean([log_p(base, example) for example in examples]))
    expected = (value(kept) - value({})) / (full - value({}))
    assert faithfulness(base, circuit, examples) == pytest.approx(expected, abs=1e-4)


def test_what_leaves_a_mask_goes_back_to_0_and_momentum_does_not_bring_it_back() -> None:
    torch.manual_seed(0)

    def stepped(*, told: bool) -> tuple[Confinement, torch.Tensor]:
        a, b = (torch.nn.Parameter(torch.randn(2, 5)), torch.nn.Parameter(torch.randn(4, 2)))
        confined = Confinement("rows", a, b, np.array([True, True, False, False]))
        confined.begin()
        optimizer = torch.optim.AdamW([a, b], lr=0.1, weight_decay=0.0)
        for step in range(6):
            if step == 3:
                confined.move(np.array([False, True, True, False]), optimizer if told else None)
                assert not b[0].any()
                assert not b[2].any(), "it begins as the base"
            optimizer.zero_grad()
            ((b @ a) - 1).square().sum().backward()
            optimizer.step()
        return confined, b.detach()

    _, b = stepped(told=True)
    assert [bool(row.any()) for row in b] == [False, True, True, False]
    assert bool(stepped(told=False)[1][0].any()), "the control: what this test would see without"


def test_a_column_that_enters_before_anything_was_learned_can_learn() -> None:
    a, b = torch.nn.Parameter(torch.randn(2, 5)), torch.nn.Parameter(torch.zeros(4, 2))
    drawn = a.detach().clone()
    confined = Confinement("columns", a, b, np.zeros(5, dtype=bool))
    confined.begin()
    assert not a.any()
    confined.move(np.arange(5) == 3)
    assert torch.equal(a[:, 3], drawn[:, 3])
    assert not a[:, [0, 1, 2, 4]].any()
    with torch.no_grad():
        b.fill_(1.0)
    confined.move(np.arange(5) >= 3)
    assert not a[:, 4].any(), "B is no longer 0: it begins as the base"


def test_a_mask_that_moves_ends_as_zeros_outside_the_circuit_that_is_kept(
    folder: Path, circuit: Circuit, lessons: list[TrainExample], tmp_path: Path
) -> None:
    tuned = tune(folder, lessons, tmp_path / "run", CONFIG, circuit=circuit, progress=False)
    assert tuned.circuit is not None
    assert set(tuned.circuit.units) != set(UNITS), "it did move"
    assert [point["step"] for point in tuned.drift] == [3, 6, 9]
    assert all(0 <= point["distance"] <= 1 and -1 <= point["spearman"] <= 1 for point in tuned.drift)
    assert tuned.variant.manifest.metrics["drift_distance"] == tuned.drift[-1]["distance"]
    parts = circuit_parts(load_base(folder), tuned.circuit)
    assert set(tuned.variant.deltas) <= set(parts)
    assert tuned.variant.deltas
    for name, delta in tuned.variant.deltas.items():
        dense = delta.dense()
        outside = ~parts[name].along("columns", dense.shape[0])[:, None] | ~parts[name].along("rows", dense.shape[1])
        assert not dense[outside].any(), name
    still = tune(folder, lessons, tmp_path / "still", CONFIG.with_(relocalise_every=0), circuit=circuit, progress=False)
    assert still.circuit is not None
    assert still.circuit.units == UNITS
    assert [point["step"] for point in still.drift] == [9]
    assert still.variant.hash != tuned.variant.hash
    sides = {"w_gate": 64, "w_up": 64, "w_down": 64, "w_q": 64, "w_o": 64}
    n = {"w_q": 16, "w_o": 16}
    expected = sum(2 * (sides[kind] + n.get(kind, 1)) for kind in [*(("w_gate", "w_up", "w_down") * 3), "w_q", "w_o"])
    assert still.variant.manifest.metrics["trainable"] == expected


def test_a_killed_run_goes_on_with_the_circuit_that_it_had(
    folder: Path, circuit: Circuit, lessons: list[TrainExample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.with_(checkpoints=3)
    whole = tune(folder, lessons, tmp_path / "whole", config, circuit=circuit, progress=False)
    real = module.run_training

    def killed(objective: Any, train: Any, where: Path, bar: Any) -> None:
        def until(done: int, total: int = 0, label: str | None = None) -> None:
            if done == 5:
                raise KeyboardInterrupt
            bar(done, total, label)

        real(objective, train, where, until)

    with monkeypatch.context() as patch:
        patch.setattr(module, "run_training", killed)
        with pytest.raises(KeyboardInterrupt):
            tune(folder, lessons, tmp_path / "cut", config, circuit=circuit, progress=False)
    cut = tune(folder, lessons, tmp_path / "cut", config, circuit=circuit, progress=False)
    assert len(cut.run.sessions) == 2
    assert cut.circuit is not None
    assert whole.circuit is not None
    assert cut.circuit.units == whole.circuit.units
    assert [point["step"] for point in cut.drift] == [3, 6, 9]
    for name, delta in whole.variant.deltas.items():
        np.testing.assert_allclose(cut.variant.deltas[name].dense(), delta.dense(), rtol=0, atol=1e-6)


def test_a_circuit_owns_the_same_weights_in_training_as_on_a_server(
    base: Base, client: Client, circuit: Circuit
) -> None:
    info = client.describe()
    whole = Circuit(make_space(info, "attn_out"), (Unit("attn_out.1"),), (1.0,))
    rows = Circuit(make_space(info, "mlp_out", part="unit"), (Unit("mlp_out.2", unit=7),), (1.0,))
    for one in (circuit, whole, rows):
        served, ours = circuit_weights(client, one).parts, circuit_parts(base, one)
        assert ours == dict(served)


def test_what_cannot_be_found_again_is_refused(
    folder: Path, client: Client, circuit: Circuit, lessons: list[TrainExample], tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgument, match="relocalise_every is of method 'circuit'"):
        TuneConfig(relocalise_every=3)
    with pytest.raises(InvalidArgument, match="goes without full_rank"):
        CONFIG.with_(full_rank=True)
    block = Circuit(make_space(client.describe(), "mlp_out"), (Unit("mlp_out.1"),), (1.0,))
    with pytest.raises(InvalidArgument, match=r"only neurons \(mlp_act\) and heads \(z\) are found again"):
        tune(folder, lessons, tmp_path / "block", CONFIG, circuit=block, progress=False)
    plain = tune(
        folder, lessons, tmp_path / "b", CONFIG.with_(relocalise_every=0, steps=1), circuit=block, progress=False
    )
    assert plain.drift == ()
    del circuit
