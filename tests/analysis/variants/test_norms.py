"""How large a variant is beside its weights: against numpy on the checkpoint's own numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy as safetensors_numpy

from probewire.analysis.variants.norms import norms, with_norms
from probewire.clients import Client, Delta, FailedPrecondition, Variant
from probewire.protos.variants.manifest import Base, Manifest
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint

_numpy: Any = safetensors_numpy  # not annotated


@pytest.mark.parametrize("backend", ["torch", "mlx"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_norms_are_those_of_the_matrices(family: str, backend: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(family, tmp_path)
    with Client.inprocess(
        InProcessService.create(str(folder), backend=backend, dtype="float32", device="cpu")
    ) as client:
        info, rng = client.describe(), np.random.default_rng(0)
        delta = Delta(rng.normal(size=(info.d_mlp, 3)), rng.normal(size=(3, info.d_model)))
        variant = Variant({"w_down.1": delta}, manifest=Manifest(name="large"))
        found = norms(client, variant)["w_down.1"]
        path = next(one.path for one in info.weights if one.name == "w_down.1")
        arrays: dict[str, Any] = _numpy.load_file(folder / "model.safetensors")
        stored = next(value for key, value in arrays.items() if path.endswith(key.removesuffix(".weight"))).astype(
            np.float64
        )
        dense = delta.a.astype(np.float64) @ delta.b.astype(np.float64)
        assert found["rank"] == 3
        assert found["norm"] == pytest.approx(np.linalg.norm(dense), rel=1e-6)
        assert found["relative_norm"] == pytest.approx(np.linalg.norm(dense) / np.linalg.norm(stored), rel=1e-5)
        assert found["singular"] == pytest.approx(np.linalg.norm(dense, 2), rel=1e-6)
        assert found["base_singular"] == pytest.approx(np.linalg.norm(stored, 2), rel=0.02)
        told = with_norms(client, variant)
        assert told.manifest.norms == {"w_down.1": found}
        assert told.hash == variant.bound(info).hash
        assert "‖ΔW‖/‖W‖" in (told.save(tmp_path / "large") / "README.md").read_text()
        other = Variant({"w_down.1": delta}, manifest=Manifest(base=Base(id="other", model_hash="00" * 32)))
        with pytest.raises(FailedPrecondition, match="is of model"):
            norms(client, other)
