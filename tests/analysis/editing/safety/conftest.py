"""A tiny model with a planted behaviour: prompts that end in a topic's token are answered with one token, by one direction."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy as safetensors_numpy

from probewire.clients import Client
from probewire.server.config import WorkerConfig
from probewire.server.worker.inprocess import InProcessService
from probewire.server.worker.model import LocalModel
from tests.parity.harness import CHUNKED
from tests.parity.opened import Opened
from tests.tiny_models import tiny_checkpoint

TOPIC, REFUSAL = range(30, 40), 7
_DRAWN = np.random.default_rng(8).normal(size=64)
PLANTED = _DRAWN / np.linalg.norm(_DRAWN)
_numpy: Any = safetensors_numpy


@pytest.fixture(scope="package")
def opened_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    made = Opened(tmp_path_factory.mktemp("safety"))
    yield made
    made.close()


def planted_folder(folder: Path) -> Path:
    """Topic tokens are embedded with the direction, and it is what the refusal's row of the head reads."""
    made = Path(shutil.copytree(tiny_checkpoint("llama", folder), folder / "copy"))  # others read the same one
    path = made / "model.safetensors"
    arrays: dict[str, Any] = {name: np.array(value) for name, value in _numpy.load_file(path).items()}
    size = np.linalg.norm(arrays["model.embed_tokens.weight"], axis=1).mean()
    for name in arrays:  # branches that leave the planted direction be seen
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            arrays[name] *= 0.1
    arrays["model.embed_tokens.weight"][list(TOPIC)] += (6 * size * PLANTED).astype(np.float32)
    arrays["lm_head.weight"][REFUSAL] += (2.4 * PLANTED).astype(np.float32)
    _numpy.save_file(arrays, path, {"format": "pt"})
    return made


@pytest.fixture(scope="package", params=["torch", "mlx"])
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = planted_folder(tmp_path_factory.mktemp("planted"))
    config = WorkerConfig(str(folder), "planted", backend=request.param, dtype="float32", device="cpu", engine=CHUNKED)
    with Client.inprocess(InProcessService(LocalModel(config, folder))) as client:
        yield client


def prompts(n: int, seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts that end in a token of the topic, and such as do not; unlike but for that."""
    rng = np.random.default_rng(seed)
    found: list[list[list[int]]] = []
    for last in (TOPIC, range(50, 60)):
        own = [[int(t) for t in rng.integers(60, 200, size=int(rng.integers(5, 9)))] for _ in range(n)]
        found.append([[*one, int(rng.choice(list(last)))] for one in own])
    return found[0], found[1]
