"""A tiny model in this process, and SAEs of its width."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from probewire.clients import Client
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint

SITE = "resid_post.1"


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """Over a tiny random llama in float32."""
    folder = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    with Client.inprocess(InProcessService.create(str(folder), backend="torch", dtype="float32", device="cpu")) as made:
        yield made


@pytest.fixture(scope="session")
def save_sae(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Saves a random SAE as sae-lens does: architecture, d_in, d_sae, and options of its config."""
    import torch

    def save(architecture: str, d_in: int, d_sae: int, *, seed: int = 0, site: str = SITE, **options: Any) -> Path:
        torch.manual_seed(seed)
        made: Any = import_module("sae_lens.registry").get_sae_class(architecture)
        sae_class, config_class = made
        config = config_class(d_in=d_in, d_sae=d_sae, device="cpu", **options)
        config.metadata.hook_name = site
        sae: Any = sae_class(config)
        for parameter in sae.parameters():
            parameter.data = torch.randn_like(parameter) / parameter.shape[0] ** 0.5
        folder = tmp_path_factory.mktemp("saes") / f"{architecture}-{seed}"
        sae.save_model(folder)
        return folder

    return save
