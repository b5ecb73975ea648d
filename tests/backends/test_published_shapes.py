"""Every published configuration shrinks, loads and is checked, on both backends: what its sizes are equal to must not matter."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import probewire.backends as backends
from probewire.backends import load_backend
from probewire.backends.checkpoints.shrunk import WINDOW, full_config, shrunk
from probewire.backends.model.families import window_in
from probewire.backends.model.limits import Limits
from tests.published import PUBLISHED

LIMITS = Limits(n_slots=2, context_tokens=64, cache_tokens=256, chunk_tokens=8)
WITHOUT_WINDOW = ("gpt2", "gpt2-xl")
"""Their sizes have names of their own; nothing of them has to be shrunk to check a window."""


def _small(name: str, folder: Path) -> dict[str, Any]:
    (folder / "config.json").write_text(json.dumps(PUBLISHED[name]))
    return shrunk(full_config(folder))


def test_there_are_enough_of_them() -> None:
    assert len(PUBLISHED) >= 25
    assert {config["model_type"] for config in PUBLISHED.values()} >= {
        "llama", "mistral", "qwen2", "qwen3", "smollm3", "gpt2", "gemma2", "gemma3_text", "phi3", "gpt_oss",
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in WITHOUT_WINDOW])
@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_it_shrinks_loads_and_generates(backend: str, name: str, tmp_path: Path) -> None:
    """The small model has every kind of layer that the published one has, and its engine computes what it should."""
    if backend == "torch":
        from probewire.backends.torch.tiny import write_tiny
    else:
        from probewire.backends.mlx.tiny import write_tiny
    small, whole = _small(name, tmp_path), full_config(tmp_path)
    assert set(small.get("layer_types") or ()) == set(whole.get("layer_types") or ())
    assert (small["num_key_value_heads"] == 1) == (whole["num_key_value_heads"] == 1)
    folder = tmp_path / "small"
    folder.mkdir()
    write_tiny(folder, small)
    loaded = load_backend(backend, folder, model_id="tiny", limits=LIMITS, dtype="float32", device="cpu")
    assert loaded.info.generate, loaded.info.generate_note
    assert loaded.info.n_layers == small["num_hidden_layers"]
    loaded.close()


@pytest.mark.parametrize("name", [n for n, config in PUBLISHED.items() if config.get("sliding_window")])
@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_its_window_is_checked(backend: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the published config.json in the folder, as at a load of the whole model."""
    small = _small(name, tmp_path)
    if not window_in(full_config(tmp_path)):
        assert not PUBLISHED[name].get("use_sliding_window", True)
        return
    assert small["sliding_window"] == WINDOW
    monkeypatch.setattr(backends, "engine_fault", lambda _: "")  # there is no whole model here
    loaded: Any = SimpleNamespace(compared=True, engine=None)
    assert backends._found(backend, tmp_path, loaded, "cpu") == ""


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_a_fault_of_the_check_costs_generation_and_not_the_load(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from probewire.backends.torch.tiny import write_tiny

    folder = tmp_path / "small"
    folder.mkdir()
    write_tiny(folder, _small("gemma-3-1b-pt", tmp_path))

    def breaks(*_: Any) -> Any:
        raise np.linalg.LinAlgError("whatever a library says")

    monkeypatch.setattr("probewire.backends.selfcheck.shrunk", breaks)
    loaded = load_backend(backend, folder, model_id="tiny", limits=LIMITS, dtype="float32", device="cpu")
    assert not loaded.info.generate
    assert "whatever a library says" in loaded.info.generate_note
    assert loaded.info.site("resid_post") is not None
    loaded.close()
