"""Every block of docs/client.md runs, in order, against a real model behind both APIs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer

from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint

PAGE = Path(__file__).parents[2] / "docs" / "client.md"


@pytest.fixture
def apis(tmp_path: Path) -> Iterator[FakeServer]:
    """A random llama of three layers behind both APIs, in this process."""
    service: Any = InProcessService.create(str(tiny_checkpoint("llama", tmp_path / "model")), device="cpu")
    server = FakeServer(service)
    yield server
    server.stop()
    service.close()


def test_every_block_runs(apis: FakeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = PAGE.read_text()
    for usual, here in {"grpc://127.0.0.1:50051": apis.grpc_url, "http://127.0.0.1:8000": apis.http_url}.items():
        assert usual in page
        page = page.replace(usual, here)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102 - our own page
    assert names["made"].text == names["again"].text
    assert {"steered.safetensors", "kind.safetensors", "kind.gguf", "attention.png"} <= {
        p.name for p in tmp_path.iterdir()
    }
    names["client"].close()
