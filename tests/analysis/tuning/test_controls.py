"""The arms beside a circuit's run: of its sizes, of all weights, and of none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from probewire.analysis.circuits.circuit import Circuit
from probewire.analysis.circuits.space import neuron_space
from probewire.analysis.tuning.circuit_mask import random_circuit
from probewire.analysis.tuning.config import TuneConfig
from probewire.analysis.tuning.controls import tune_with_controls
from probewire.analysis.tuning.examples import TrainExample
from probewire.clients import Client, Variant
from probewire.protos.errors import InvalidArgument

CONFIG = TuneConfig(method="circuit", steps=2, batch_size=4, lr=5e-3, rank=2, checkpoints=0)


@pytest.fixture(scope="module")
def circuit(client: Client) -> Circuit:
    space = neuron_space(client.describe())
    mask = np.zeros(space.shape, dtype=bool)
    mask[0, :60] = True  # more than are left
    mask[2, [5, 9]] = True
    return Circuit.of(space, mask, np.ones(space.shape))


def test_a_random_circuit_has_the_same_sizes_and_other_units(circuit: Circuit) -> None:
    drawn = random_circuit(circuit, 0)
    assert Counter(unit.site for unit in drawn.units) == Counter(unit.site for unit in circuit.units)
    assert not {unit for unit in drawn.units if unit.site == "mlp_act.2"} & set(circuit.units)
    assert random_circuit(circuit, 0).units == drawn.units
    assert random_circuit(circuit, 1).units != drawn.units


def test_every_arm_is_measured_with_every_seed(
    folder: Path, circuit: Circuit, lessons: list[TrainExample], tmp_path: Path
) -> None:
    def measure(variant: Variant | None) -> Mapping[str, float]:
        return {"norm": 0.0 if variant is None else sum(delta.norm() for delta in variant.deltas.values())}

    found = tune_with_controls(
        folder, lessons, tmp_path, CONFIG, circuit=circuit, measure=measure, seeds=(0, 1), progress=False
    )
    assert Counter(trial.arm for trial in found.trials) == {"none": 1, "circuit": 2, "random": 2, "all": 2}
    assert found.of("none", "norm") == [0.0]
    assert min(found.of("all", "norm")) > 0
    weights = {trial.arm: set(trial.tuned.variant.deltas) for trial in found.trials if trial.tuned}
    assert weights["circuit"] == weights["random"] == {f"{w}.{i}" for w in ("w_gate", "w_up", "w_down") for i in (0, 2)}
    assert len(weights["all"]) == 21
    assert found.table().splitlines()[0].split() == ["arm", "norm"]
    assert [trial["arm"] for trial in found.to_json()][:2] == ["none", "circuit"]


def test_all_weights_may_have_as_many_trainable_numbers(
    folder: Path, circuit: Circuit, lessons: list[TrainExample], tmp_path: Path
) -> None:
    config = CONFIG.with_(rank=4, alpha=8.0, weights=("w_up.*", "w_down.*"), steps=1)
    found = tune_with_controls(
        folder, lessons, tmp_path, config, circuit=circuit, measure=lambda _: {"none": 0.0}, seeds=(0,), equal="trainable",
        progress=False,
    )  # fmt: skip
    runs = {trial.arm: trial.tuned for trial in found.trials if trial.tuned}
    counts = {arm: tuned.variant.manifest.metrics["trainable"] for arm, tuned in runs.items()}
    units = 62
    assert counts["circuit"] == counts["random"] == 4 * (2 * 2 * 64 + 2 * units)
    rank = runs["all"].run.config.rank
    assert counts["all"] == rank * 6 * (64 + 96)
    assert rank == round(counts["circuit"] / (6 * 160)) == 2
    assert runs["all"].run.config.alpha / rank == 2.0


def test_what_is_no_comparison_is_refused(
    folder: Path, circuit: Circuit, lessons: list[TrainExample], tmp_path: Path
) -> None:
    for config, seeds, said in ((CONFIG.with_(method="lora"), (0,), "method 'circuit'"), (CONFIG, (0, 0), "distinct")):
        with pytest.raises(InvalidArgument, match=said):
            tune_with_controls(
                folder, lessons, tmp_path, config, circuit=circuit, measure=lambda _: {}, seeds=seeds, progress=False
            )
