"""A model with one neuron of known meaning (tests/analysis/ablation/planted.py), which is therefore a circuit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from probewire.analysis.circuits import Circuit, Claim, Origin, ablated, judge, neuron_space
from probewire.analysis.reports.circuit import task_card
from probewire.analysis.tasks import Example, Task, fit
from probewire.clients import Client
from tests.analysis.ablation.planted import CUE, LAYER, NEURON, OTHER, SAYS, client_of, plant
from tests.tiny_models import tiny_checkpoint


def _texts(letters: str, n: int, seed: int) -> list[str]:
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(letters), size=7)) for _ in range(n)]


TASK = Task(
    "planted",
    tuple(
        Example(f"{text}{CUE}", f"{text}{OTHER}", (SAYS,), ("u", "v"), labels={"letters": name})
        for name, letters, n in (("early", "abcdefghij", 24), ("late", "klmnopqrs", 8))
        for text in _texts(letters, n, n)
    ),
)
FOUND_ON = {"letters": "early"}


@pytest.fixture(scope="session")
def planted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planted")
    planted = plant(tiny_checkpoint("llama", folder / "base"), folder / "planted")
    path = planted / "model.safetensors"
    weights = {name: weight.copy() for name, weight in load_file(path).items()}
    for name, weight in weights.items():  # the other neurons next to nothing, so that it alone is the circuit
        if name.endswith("down_proj.weight"):
            one = weight[:, NEURON].copy()
            weight *= 0.05
            if name.startswith(f"model.layers.{LAYER}."):
                weight[:, NEURON] = 30.0 * one
    save_file(weights, path, metadata={"format": "pt"})
    return planted


@pytest.fixture(scope="session")
def planted_client(planted_folder: Path) -> Iterator[Client]:
    with client_of(planted_folder) as client:
        yield client


def of_neurons(client: Client, *neurons: tuple[int, int], claims: tuple[Claim, ...] = ()) -> Circuit:
    """A circuit of (layer, neuron), judged on four prompts."""
    info = client.describe()
    task = fit(TASK.where(**FOUND_ON), client, 4)
    space = neuron_space(info)
    mask = np.zeros(space.shape, dtype=bool)
    for layer, neuron in neurons:
        mask[layer, neuron] = True
    origin = Origin(model=info.id, model_hash=info.model_hash, task="planted", method="planted")
    model = ablated(client, task.clean, task.corrupt, task.metrics, space, progress=False)
    return judge(model, Circuit.of(space, mask, mask.astype(float), origin)).with_card(
        name="planted", task=task_card(task), claims=claims
    )


@pytest.fixture(scope="session")
def true_circuit(planted_client: Client) -> Circuit:
    claim = Claim(f"mlp_act.{LAYER} #{NEURON}", "says the answer after the cue", "necessity", 0.5)
    return of_neurons(planted_client, (LAYER, NEURON), claims=(claim,))
