"""Modules that read one input read it once for all their deltas, and only where it is the same one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.backends.deltas.factors import BoundUse
from probewire.backends.hooks.base import Backend
from probewire.protos.spec import Capture, Hook, Plan, Where
from tests.backends.derived import derived
from tests.parity.harness import sequence
from tests.parity.opened import gap
from tests.parity.random_variants import random_variant
from tests.tiny_models import tiny_checkpoint

TOKENS = [7, 99, 12, 200, 31, 64, 5]
READ = Plan((Hook("resid_post.*", capture=Capture()), Hook("logits", capture=Capture(), where=Where(phase="all"))))
MOST = 1e-9
"""Relative error in float64."""


@pytest.fixture(params=["torch", "mlx"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    made = derived(tiny_checkpoint("llama", tmp_path), "float64", request.param)
    yield made
    made.close()


def deltas_of(backend: Any) -> Any:
    return backend.executor.deltas


def ran(backend: Backend, use: BoundUse) -> Any:
    one = sequence(backend, TOKENS, READ)
    one.plan.uses = (use,)
    (result,) = backend.run([one])
    return np.concatenate([np.concatenate(list(found.values), axis=-1) for found in result.rows], axis=-1)


def test_q_k_and_v_are_read_at_once(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven linear modules a layer, of four inputs."""
    assert backend.weight_table is not None
    use = BoundUse(backend.weight_table.bind(random_variant(backend, np.random.default_rng(2), 3)))
    products: Any = deltas_of(backend).products
    widths: list[int] = []
    stock = products.read
    monkeypatch.setattr(products, "read", lambda x, step: (widths.append(step.a.shape[1]), stock(x, step))[1])
    first = ran(backend, use)
    n_layers = backend.info.n_layers
    assert widths.count(9) == n_layers  # q, k and v, of rank 3 each
    assert widths.count(6) == n_layers  # gate and up
    assert widths.count(3) == 2 * n_layers + 2  # o and down, the embedding and the head
    assert np.array_equal(ran(backend, use), first), "the first forward is computed as all others are"


def test_a_variant_at_some_of_them_after_one_at_all(backend: Backend) -> None:
    """What was seen of one variant says nothing of which weights another has."""
    assert backend.weight_table is not None
    whole = random_variant(backend, np.random.default_rng(2), 2)
    some = whole.only("w_k.*")
    fresh = ran(backend, BoundUse(backend.weight_table.bind(some)))
    for _ in range(2):
        ran(backend, BoundUse(backend.weight_table.bind(whole)))
    assert gap(ran(backend, BoundUse(backend.weight_table.bind(some))), fresh) < MOST


def test_nothing_of_a_forward_that_is_over_is_kept(backend: Backend) -> None:
    """Neither its input nor what was read of it."""
    assert backend.weight_table is not None
    deltas = deltas_of(backend)
    use = BoundUse(backend.weight_table.bind(random_variant(backend, np.random.default_rng(2), 2)))
    ran(backend, use)

    assert deltas._source is None, "nothing of a forward that is over is kept"
    assert deltas._held == {}
