"""Runs on a tiny llama: what may change changes, what may not stays to the bit, and a killed run ends where it would have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probewire.analysis.circuits.circuit import Circuit
from probewire.analysis.circuits.space import head_space, neuron_space
from probewire.analysis.tuning import tuning as module
from probewire.analysis.tuning.base import Base, load_base
from probewire.analysis.tuning.config import TuneConfig
from probewire.analysis.tuning.examples import TrainExample, batch_of, to_tokens
from probewire.analysis.tuning.tuning import Tuned, prepared, read_tuned, tune
from probewire.clients import Client, Variant
from probewire.protos.errors import FailedPrecondition, InvalidArgument, NotFound

SMALL = TuneConfig(steps=4, batch_size=4, lr=5e-3, rank=2, checkpoints=0)
GENERAL = ["the sun rises in the east", "a cat sat on a mat", "two and two are four"]


@pytest.fixture(scope="module")
def neurons(client: Client) -> Circuit:
    space = neuron_space(client.describe())
    mask = np.zeros(space.shape, dtype=bool)
    mask[1, [3, 40, 95]] = True
    mask[2, [7]] = True
    return Circuit.of(space, mask, np.ones(space.shape))


@pytest.fixture(scope="module")
def heads(client: Client) -> Circuit:
    space = head_space(client.describe())
    mask = np.zeros(space.shape, dtype=bool)
    mask[0, [2]] = True
    return Circuit.of(space, mask, np.ones(space.shape))


def logits(base: Base, text: str) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return base.model(torch.tensor([base.tokenizer(text)["input_ids"]])).logits[0].numpy()


def merged(folder: Path, variant: Variant) -> Base:
    base = load_base(folder)
    for name, delta in variant.deltas.items():
        base.module(name).weight.data += torch.tensor(delta.dense().T)
    return base


@pytest.mark.parametrize("full_rank", [False, True])
def test_outside_a_circuit_nothing_changes_by_a_bit(
    folder: Path, neurons: Circuit, lessons: list[TrainExample], tmp_path: Path, *, full_rank: bool
) -> None:
    config = SMALL.with_(method="circuit", steps=20, full_rank=full_rank)
    tuned = tune(folder, lessons, tmp_path / "run", config, circuit=neurons, general=GENERAL, progress=False)
    assert set(tuned.variant.deltas) == {f"{name}.{layer}" for name in ("w_gate", "w_up", "w_down") for layer in (1, 2)}
    before, after = load_base(folder), merged(folder, tuned.variant)
    units = {1: [3, 40, 95], 2: [7]}
    for name in before.paths:
        changed = (after.module(name).weight != before.module(name).weight).numpy()
        kind, layer = name.split(".")
        if int(layer) not in units or kind not in ("w_gate", "w_up", "w_down"):
            assert not changed.any(), name
            continue
        side = 1 if kind == "w_down" else 0
        inside = np.isin(np.arange(changed.shape[side]), units[int(layer)])
        assert not np.compress(~inside, changed, axis=side).any(), name
        assert np.compress(inside, changed, axis=side).any(), name
        if full_rank:
            assert tuned.variant.deltas[name].rank == len(units[int(layer)])
    assert tuned.curves["task"][-1] < tuned.curves["task"][0]
    assert (tuned.curves["coherence"][1:] > 0).all()


def test_a_circuit_of_heads_owns_rows_of_q_and_columns_of_o(
    folder: Path, heads: Circuit, lessons: list[TrainExample], tmp_path: Path
) -> None:
    tuned = tune(folder, lessons, tmp_path / "run", SMALL.with_(method="circuit"), circuit=heads, progress=False)
    assert set(tuned.variant.deltas) == {"w_q.0", "w_o.0"}
    head = np.isin(np.arange(64), np.arange(32, 48))  # the third of four heads of 16
    q, o = (tuned.variant.dense(name) for name in ("w_q.0", "w_o.0"))
    assert not q[:, ~head].any()
    assert q[:, head].any()
    assert not o[~head].any()
    assert o[head].any()


def test_the_variant_is_what_was_trained(folder: Path, lessons: list[TrainExample], tmp_path: Path) -> None:
    """Its deltas, added to the base's weights, give the adapted model's logits."""
    tuned = tune(folder, lessons, tmp_path / "run", SMALL, progress=False)
    base = load_base(folder)
    objective = prepared(base, SMALL)
    assert objective.adapter is not None
    with torch.no_grad():
        for name in objective.adapter.weights:
            layer, delta = objective.adapter.layer(name), tuned.variant.deltas[name]
            layer.lora_A["default"].weight.copy_(torch.tensor(delta.a.T))
            layer.lora_B["default"].weight.copy_(torch.tensor(delta.b.T / layer.scaling["default"]))
    text = "a tree whose name is oak is"
    there, here = logits(base, text), logits(merged(folder, tuned.variant), text)
    assert np.abs(there - here).max() / np.abs(there).max() < 1e-5
    assert np.abs(there - logits(load_base(folder), text)).max() / np.abs(there).max() > 1e-2
    assert tuned.curves["task"][-1] < tuned.curves["task"][0]
    assert Variant.load(tmp_path / "run" / "variant") == tuned.variant


def test_a_killed_run_goes_on_and_ends_as_it_would_have(
    folder: Path, lessons: list[TrainExample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = SMALL.with_(steps=9, checkpoints=2)
    whole = tune(folder, lessons, tmp_path / "whole", config, general=GENERAL, progress=False)
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
            tune(folder, lessons, tmp_path / "cut", config, general=GENERAL, progress=False)
    with pytest.raises(FailedPrecondition, match="not finished"):
        read_tuned(tmp_path / "cut")
    steps: list[int] = []

    def watched(objective: Any, train: Any, where: Path, bar: Any) -> None:
        real(objective, train, where, lambda done, *_: steps.append(done))

    monkeypatch.setattr(module, "run_training", watched)
    cut = tune(folder, lessons, tmp_path / "cut", config, general=GENERAL, progress=False)
    assert steps == [4, 5, 6, 7, 8, 9]
    assert len(cut.run.sessions) == 2
    _assert_equal(whole, cut, 1e-6)
    np.testing.assert_allclose(whole.curves["loss"], cut.curves["loss"], rtol=1e-5)
    assert not (tmp_path / "cut" / "checkpoints").exists()


def test_the_same_run_gives_the_same_bytes_and_another_seed_others(
    folder: Path, lessons: list[TrainExample], tmp_path: Path
) -> None:
    one, same, other = (
        tune(folder, lessons, tmp_path / name, SMALL.with_(seed=seed), progress=False)
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    )
    assert one.variant.hash == same.variant.hash
    assert one.variant.hash != other.variant.hash


def test_a_finished_run_is_read_and_another_ones_folder_refused(
    folder: Path, lessons: list[TrainExample], tmp_path: Path
) -> None:
    first = tune(folder, lessons, tmp_path / "run", SMALL, progress=False)
    assert tune(folder, lessons, tmp_path / "run", SMALL, progress=False).variant == first.variant
    with pytest.raises(FailedPrecondition, match=r"another run: lr 0\.005 there, 0\.001 here"):
        tune(folder, lessons, tmp_path / "run", SMALL.with_(lr=1e-3), progress=False)
    with pytest.raises(FailedPrecondition, match="another run: data"):
        tune(folder, lessons[:4], tmp_path / "run", SMALL, progress=False)
    with pytest.raises(FailedPrecondition, match="holds a run"):
        tune(folder, lessons, tmp_path / "run", SMALL, progress=False, resume=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("…")
    with pytest.raises(FailedPrecondition, match=r"something else.*thesis\.txt"):
        tune(folder, lessons, tmp_path / "mine", SMALL, progress=False)


@pytest.mark.parametrize("options", [{"method": "rmu", "layers": (1,)}, {"method": "breakers", "layers": (0, -2)}])
def test_forgetting_moves_the_forgotten_and_less_the_retained(
    folder: Path, lessons: list[TrainExample], tmp_path: Path, options: dict[str, Any]
) -> None:
    # Breakers begin at a saddle: the cosine with oneself is 1, and its gradient there 0 but for rounding.
    config = SMALL.with_(steps=30 if options["method"] == "breakers" else 12, lr=2e-2, retain_weight=20.0, **options)
    retained = [TrainExample("", text) for text in GENERAL]
    tuned = tune(folder, lessons, tmp_path / "run", config, general=retained, progress=False)
    assert {int(name.split(".")[1]) for name in tuned.variant.deltas} == {0, 1}
    if config.method == "rmu":
        assert {name.split(".")[0] for name in tuned.variant.deltas} == {"w_down"}
    before, after = load_base(folder), merged(folder, tuned.variant)
    moved = []
    for some in (lessons, retained):
        batch = batch_of([to_tokens(before.tokenizer, example) for example in some])
        rows = []
        for base in (before, after):
            seen: list[torch.Tensor] = []
            handle = base.block(1).register_forward_hook(lambda *given, seen=seen: seen.append(given[2]))
            with torch.no_grad():
                base.model(input_ids=batch["ids"], attention_mask=batch["mask"])
            handle.remove()
            rows.append(seen[0][batch["mask"].bool()])
        cosine = torch.nn.functional.cosine_similarity(rows[0], rows[1], dim=-1)
        moved.append(float(1 - cosine.mean()))
    assert moved[0] > 0.05
    assert moved[0] > 1.5 * moved[1]


@pytest.mark.parametrize(
    ("config", "more", "said"),
    [
        (SMALL.with_(method="circuit"), {}, "needs a circuit"),
        (SMALL.with_(method="rmu", layers=(1,)), {}, "general texts to retain"),
        (SMALL.with_(method="rmu"), {"general": GENERAL}, r"one layer's rows; give layers=\(l,\)"),
        (SMALL.with_(method="breakers"), {"general": GENERAL}, "needs the layers"),
        (SMALL.with_(method="steered"), {}, "go together"),
        (SMALL.with_(losses={"preserve": 1.0}), {}, "needs general texts"),
        (SMALL.with_(losses={"coherence": 1.0}), {}, "needs a circuit"),
    ],
)
def test_what_does_not_fit_together_is_refused(
    folder: Path, lessons: list[TrainExample], tmp_path: Path, config: TuneConfig, more: dict[str, Any], said: str
) -> None:
    with pytest.raises(InvalidArgument, match=said):
        tune(folder, lessons, tmp_path / "run", config, progress=False, **more)


def test_what_is_not_there_is_refused(folder: Path, lessons: list[TrainExample], tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no checkpoint folder"):
        tune(tmp_path / "nowhere", lessons, tmp_path / "run", SMALL, progress=False)
    with pytest.raises(NotFound, match=r"no weight of this model is 'w_x\.\*'; there are w_q\.\*"):
        tune(folder, lessons, tmp_path / "other", SMALL.with_(weights=("w_x.*",)), progress=False)
    with pytest.raises(InvalidArgument, match="no answer to learn"):
        tune(folder, [TrainExample("a prompt and nothing", "")], tmp_path / "third", SMALL, progress=False)
    with pytest.raises(InvalidArgument, match="nothing to train on"):
        tune(folder, [], tmp_path / "fourth", SMALL, progress=False)


def _assert_equal(one: Tuned, other: Tuned, tolerance: float) -> None:
    assert set(one.variant.deltas) == set(other.variant.deltas)
    for name, delta in one.variant.deltas.items():
        there = other.variant.deltas[name]
        np.testing.assert_allclose(there.a, delta.a, rtol=0, atol=tolerance)
        np.testing.assert_allclose(there.b, delta.b, rtol=0, atol=tolerance)
