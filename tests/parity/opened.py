"""Tiny models in this process behind the client that users have, each loaded once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.clients import Client
from probewire.protos.model import ModelInfo, SiteInfo
from probewire.server.config import WorkerConfig
from probewire.server.worker.inprocess import InProcessService
from probewire.server.worker.model import LocalModel
from tests.parity.harness import CHUNKED
from tests.tiny_models import tiny_checkpoint

__all__ = ["OTHER", "RULES", "TOKENS", "Opened", "at_all", "backend_of", "both", "gap", "sites_with_gradients"]

TOKENS = [7, 99, 12, 200, 31, 64, 5, 18, 77, 140, 3, 250, 88, 41]
OTHER = [41, 7, 220, 3, 19, 90, 55, 130, 4, 66, 201, 9, 33, 12]
RULES = ("ln", "identity", "half", "ah")

both = pytest.mark.parametrize("backend", ["torch", "mlx"])


class Opened:
    """Clients by family, backend and dtype."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clients: dict[tuple[str, str, str], Client] = {}

    def __call__(self, family: str, backend: str, dtype: str = "float64") -> Client:
        """A client of a tiny model of the family, on this machine's CPU."""
        key = family, backend, dtype
        if key not in self.clients:
            folder = tiny_checkpoint(family, self.folder)
            config = WorkerConfig(str(folder), "tiny", backend=backend, dtype=dtype, device="cpu", engine=CHUNKED)
            self.clients[key] = Client.inprocess(InProcessService(LocalModel(config, folder)))
        return self.clients[key]

    def close(self) -> None:
        """Let go of every model."""
        for client in self.clients.values():
            client.close()


def backend_of(client: Client) -> Any:
    """The backend behind a client of `Opened`, to look at between requests."""
    transport: Any = client._transport
    return transport._service._model.backend


def gap(found: Any, expected: Any) -> float:
    """max |found − expected| ÷ max |expected|."""
    found, expected = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    return float(np.abs(found - expected).max()) / max(float(np.abs(expected).max()), 1e-30)


def sites_with_gradients(info: ModelInfo) -> list[SiteInfo]:
    """What a gradient can be asked of."""
    return [site for site in info.sites if site.gradients]


def at_all(info: ModelInfo) -> list[str]:
    """Every site with gradients, at every layer."""
    return [site.name + (".*" if site.layers is not None else "") for site in sites_with_gradients(info)]
