"""Variants on quantised bases: the delta stands beside the packed weight, and both are what the weight's values mean."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.backends.deltas.factors import BoundUse
from probewire.backends.hooks.base import Backend
from probewire.clients import Client, Variant
from probewire.protos.metrics import LogitDifference
from probewire.protos.spec import Capture, Hook, Plan, Where
from probewire.server.config import WorkerConfig
from probewire.server.worker.inprocess import InProcessService
from probewire.server.worker.model import LocalModel
from tests.parity.harness import CHUNKED, load, sequence
from tests.parity.opened import TOKENS
from tests.parity.random_variants import random_variant
from tests.quantised import both_of_fp8, both_of_mlx, both_of_mxfp4
from tests.tiny_models import tiny_checkpoint

SAME = 1e-5
"""Error relative to a site's largest value, in float32."""
READ = Plan((Hook("resid_post.*", capture=Capture()), Hook("logits", capture=Capture(), where=Where(phase="all"))))
CASES: dict[str, tuple[str, Any]] = {
    "llama 4 bit": ("mlx", lambda folder: both_of_mlx("llama", folder, 4)),
    "phi3 8 bit": ("mlx", lambda folder: both_of_mlx("phi3", folder, 8)),
    "gemma2 4 bit": ("mlx", lambda folder: both_of_mlx("gemma2", folder, 4)),
    "llama mxfp4": ("mlx", lambda folder: both_of_mlx("llama", folder, 4, "mxfp4")),
    "gpt-oss on mlx": ("mlx", both_of_mxfp4),
    "gpt-oss on torch": ("torch", both_of_mxfp4),
    "fp8 on torch": ("torch", lambda folder: both_of_fp8("llama", folder)),
    "fp8 on mlx": ("mlx", lambda folder: both_of_fp8("qwen3", folder)),
}


@pytest.fixture(scope="module", params=list(CASES))
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    """Backend, quantised checkpoint, plain one of its values."""
    backend, make = CASES[request.param]
    return backend, *make(tmp_path_factory.mktemp("quantised"))


@pytest.fixture(scope="module")
def backends(folders: tuple[str, Path, Path]) -> Generator[tuple[Backend, Backend]]:
    one, other = (load(folders[0], folder) for folder in folders[1:])
    yield one, other
    one.close()
    other.close()


def ran(backend: Backend, variant: Variant, n: int = 1) -> list[Any]:
    """Residual streams and logits of sequences with a variant, beside one without."""
    assert backend.weight_table is not None
    use = BoundUse(backend.weight_table.bind(variant), 0.7)
    made = [sequence(backend, TOKENS, READ, name=f"s{i}") for i in range(n + 1)]
    for one in made[:n]:
        one.plan.uses = (use,)
    results = backend.run(made)
    assert all(one.error is None for one in results)
    return [np.concatenate([np.concatenate(list(f.values), axis=-1) for f in one.rows], axis=-1) for one in results]


def test_the_same_weights_are_offered_and_a_variant_at_all_of_them_is_the_same(
    backends: tuple[Backend, Backend],
) -> None:
    packed, meant = backends
    assert {(w.name, w.d_in, w.d_out) for w in packed.info.weights} == {
        (w.name, w.d_in, w.d_out) for w in meant.info.weights
    }
    assert {"w_q.1", "w_v.0", "w_o.1", "w_unembed"} <= {w.name for w in packed.info.weights}
    variant = random_variant(meant, np.random.default_rng(3), 3)
    (found, base), (expected, unchanged) = ran(packed, variant), ran(meant, variant)
    assert np.abs(expected - unchanged).max() > 1e-2 * np.abs(unchanged).max()
    for one, other in ((found, expected), (base, unchanged)):
        assert np.abs(one - other).max() <= SAME * np.abs(other).max()


def test_rows_without_a_variant_are_the_bases_to_the_bit(backends: tuple[Backend, Backend]) -> None:
    packed, _ = backends
    variant = random_variant(packed, np.random.default_rng(4), 2)
    *_, beside = ran(packed, variant)
    plain = [sequence(packed, TOKENS, READ, name=f"s{i}") for i in range(2)]
    rows = packed.run(plain)[1].rows
    alone = np.concatenate([np.concatenate(list(f.values), axis=-1) for f in rows], axis=-1)
    assert np.array_equal(beside, alone)


def test_gradients_go_through_both(folders: tuple[str, Path, Path]) -> None:
    metric, found = LogitDifference((7, 8), (200,), 9), []
    for folder in folders[1:]:
        config = WorkerConfig(str(folder), "tiny", backend=folders[0], dtype="float32", device="cpu", engine=CHUNKED)
        model = LocalModel(config, folder)
        with Client.inprocess(InProcessService(model)) as client:
            client.load_variant(random_variant(model.backend, np.random.default_rng(5), 2), name="v")
            found.append(client.gradients(TOKENS, metric, at=["embed", "resid_mid.*"], variant="v"))
    one, other = found
    assert one.metric == pytest.approx(other.metric, rel=SAME, abs=SAME)  # a difference of logits about 1
    for site, value in other.gradients.items():
        assert np.abs(one.gradients[site] - value).max() <= 10 * SAME * max(float(np.abs(value).max()), 1e-9), site


@pytest.mark.parametrize("quantize", ["int8", "int4"])
@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_quantised_at_load(backend: str, quantize: str, tmp_path: Path) -> None:
    """Against the numbers that it says it holds: the same variant, run on a plain model of them."""
    from tests.backends.test_quantised import _client, _meant

    plain = tiny_checkpoint("llama", tmp_path)
    packed = _client(plain, backend, quantize=quantize)
    values = _client(_meant(plain, packed, tmp_path / "meant"), backend)
    model: Any = packed._transport
    variant = random_variant(model._service._model.backend, np.random.default_rng(6), 2)
    answers = []
    for client in (packed, values):
        client.load_variant(variant, name="v")
        answers.append(client.run(TOKENS, capture=["resid_post.*", "logits"], variant="v").captures)
        client.close()
    for site in answers[1]:
        one, other = (np.asarray(a[site]) for a in answers)
        assert np.abs(one - other).max() <= SAME * np.abs(other).max(), site
