"""A tiny llama with one neuron of known meaning, and the brute force that sweeps are held against."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from probewire.analysis.tasks import Example, Task
from probewire.clients import Client, Hook, Input, capture
from probewire.protos.metrics import LogitDifference
from probewire.server.worker.inprocess import InProcessService

__all__ = ["CUE", "LAYER", "NEURON", "OTHER", "SAYS", "TASK", "brute_force", "client_of", "plant", "texts"]

LAYER, NEURON = 2, 17
"""The last layer's."""
CUE, OTHER = "x", "w"
"""The neuron is large and positive after the one, and nearly nothing after the other."""
SAYS = "t"
"""What it writes: this letter's row of the unembedding."""


def client_of(folder: Path, backend: str = "torch") -> Client:
    return Client.inprocess(InProcessService.create(str(folder), backend=backend, dtype="float32", device="cpu"))


def texts(n: int, end: str, seed: int = 0) -> list[str]:
    """Distinct random letters, then `end`."""
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list("abcdefghij"), size=9)) + end for _ in range(n)]


TASK = Task(
    "planted",
    tuple(Example(f"{text}{CUE}", f"{text}{OTHER}", (SAYS,), ("u", "v")) for text in texts(12, "")),
)


def plant(folder: Path, target: Path) -> Path:
    """A copy of the checkpoint whose neuron tells the cue from the other letter, and writes its answer.

    Blocks are damped first, so that the last token's own letter matters most. Gate and up rows are equal, so the
    activation is g²·σ(g): never negative. The row is the linear discriminant of the two letters' inputs, made
    orthogonal to their midpoint so that one lies above zero and the other below.
    """
    shutil.copytree(folder, target)
    weights = {name: weight.copy() for name, weight in load_file(folder / "model.safetensors").items()}
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight *= 0.1
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    with client_of(target) as client:
        cue, other = (_inputs(client, end) for end in (CUE, OTHER))
    within = np.cov(np.concatenate([cue - cue.mean(axis=0), other - other.mean(axis=0)]).T)
    middle = (cue.mean(axis=0) + other.mean(axis=0)) / 2
    solved = np.linalg.solve(within + 1e-3 * np.eye(len(within)), np.stack([cue.mean(axis=0) - middle, middle], axis=1))
    row = solved[:, 0] - solved[:, 1] * (solved[:, 0] @ middle) / (solved[:, 1] @ middle)
    row *= 4 / (row @ cue.mean(axis=0))  # so that g is about 4 after the cue, and −4 after the other letter
    mlp = f"model.layers.{LAYER}.mlp"
    for name in ("gate_proj", "up_proj"):
        weights[f"{mlp}.{name}.weight"][NEURON] = row
    says = weights["lm_head.weight"][ord(SAYS) - ord("!")]
    weights[f"{mlp}.down_proj.weight"][:, NEURON] = 0.1 * says / np.linalg.norm(says)
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


def _inputs(client: Client, end: str) -> np.ndarray:
    """[text, d_model]: what the neuron reads at the last token."""
    site = f"mlp_in.{LAYER}"
    run = client.run(texts(60, end, seed=1), capture=capture(site, positions=-1))
    return np.stack([item[site][0] for item in run.inputs.values()])


def brute_force(
    client: Client, inputs: Mapping[str, Input], metrics: Mapping[str, LogitDifference], plans: Sequence[Sequence[Hook]]
) -> np.ndarray:
    """[input, plan]: each plan run by itself, whole logits fetched, the metric formed in numpy."""
    found = np.zeros((len(inputs), len(plans)))
    for column, plan in enumerate(plans):
        for row, (name, prompt) in enumerate(inputs.items()):
            logits = client.run(prompt, hooks=list(plan), capture="logits")["logits"][-1].astype(np.float64)
            metric = metrics[name]
            found[row, column] = logits[list(metric.correct)].mean() - logits[list(metric.wrong)].mean()
    return found
