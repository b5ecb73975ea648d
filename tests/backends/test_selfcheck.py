"""The self-check passes sound engines, and catches the faults that engines were seen to have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from probewire.backends import load_backend
from probewire.backends.model.limits import Limits
from tests.tiny_models import FAMILIES, tiny_checkpoint

LIMITS = Limits(n_slots=2, context_tokens=64, cache_tokens=256, chunk_tokens=8)


def _load(name: str, folder: Path) -> Any:
    return load_backend(name, folder, model_id="tiny", limits=LIMITS, dtype="float32", device="cpu")


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_sound_engines_pass(name: str, family: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    backend = _load(name, tiny_checkpoint(family, tmp_path_factory.mktemp("tiny")))
    assert backend.info.generate, backend.info.generate_note
    assert not backend.engine.active
    backend.close()


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_dropped_softcap_is_caught(everywhere: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers' continuous batching did on gemma2: sequences have caches of their own then, and runs go on; where that
    drops it too, generation is refused."""
    import probewire.backends.torch.attention as attention

    real = attention._eager

    def forgetful(module: Any, query: Any, key: Any, *args: Any, **kwargs: Any) -> Any:
        batching = kwargs.get("cu_seq_lens_q") is not None
        if batching or (everywhere and key.shape[2] > query.shape[2]):  # after earlier keys
            kwargs["softcap"] = None
        return real(module, query, key, *args, **kwargs)

    monkeypatch.setattr(attention, "_eager", forgetful)
    backend = _load("torch", tiny_checkpoint("gemma2", tmp_path))
    note = backend.info.generate_note
    assert backend.info.generate is not everywhere
    assert "decode differs from a plain forward" in note
    assert ("one sequence after another" in note) == everywhere
    assert (backend.engine is None) == everywhere


def test_an_ignored_window_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As mlx-lm does on mistral: the plain forward ignores it too, so only the reference can tell."""
    import probewire.backends.mlx.load as load

    monkeypatch.setattr(load, "windows_of", lambda config, _: [None] * config.num_hidden_layers)
    monkeypatch.setattr("probewire.backends.mlx.backend.windows_of", load.windows_of, raising=False)
    backend = _load("mlx", tiny_checkpoint("mistral", tmp_path))
    assert not backend.info.generate
    assert "past the sliding window" in backend.info.generate_note
