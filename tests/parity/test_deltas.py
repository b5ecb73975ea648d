"""A variant is other weights: every backend against the numpy reference with W + ΔW, and against itself in other ways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from probewire.backends import reference
from probewire.backends.deltas.factors import BoundUse
from probewire.backends.hooks.base import Backend
from probewire.backends.reference.variants import with_variant
from probewire.protos.spec import Capture, Hook, Plan, Where
from probewire.protos.variants.variant import Variant
from tests.parity.harness import Array, load, sequence
from tests.parity.random_variants import random_variant
from tests.tiny_models import FAMILIES, tiny_checkpoint

TOKENS = [7, 99, 12, 200, 31, 64, 5, 18, 77, 140, 3, 250, 88, 41, 9, 16, 201, 54, 33]
PROMPT = 7
MOST = 1e-9
"""Relative error in float64: rounding, and nothing else."""
BESIDE_REFERENCE = 1e-5
"""The libraries' tables of rotary angles are float32 in any dtype (3e-7 was seen)."""
READ = Plan((Hook("resid_post.*", capture=Capture()), Hook("logits", capture=Capture(), where=Where(phase="all"))))


@pytest.fixture(scope="module", params=list(FAMILIES))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(request.param, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=["torch", "mlx"])
def backend(request: pytest.FixtureRequest, folder: Path) -> Backend:
    return load(request.param, folder, dtype="float64")


def ran(
    backend: Backend, tokens: list[list[int]], uses: list[tuple[BoundUse, ...]], prompt: int | None = None
) -> list[Array]:
    """resid_post of every layer and the logits, [pos, …] side by side, of sequences in one batch."""
    made = [sequence(backend, own, READ, prompt_length=prompt, name=f"s{i}") for i, own in enumerate(tokens)]
    for one, own in zip(made, uses, strict=True):
        one.plan.uses = own
    found: list[Array] = []
    for result in backend.run(made):
        if result.error is not None:
            raise result.error
        rows = [np.concatenate(list(found.values), axis=-1) for found in result.rows]
        found.append(np.concatenate(rows, axis=-1))
    return found


def expected(folder: Path, variant: Variant, scale: float = 1.0, rows: Array | None = None) -> Array:
    model = with_variant(reference.load(folder, "float64"), variant, scale, rows)
    result = reference.run(model, TOKENS, READ)
    sites = [result.captures[0, f"resid_post.{layer}", ""].values for layer in range(len(model.layers))]
    return np.concatenate([*sites, result.captures[1, "logits", ""].values], axis=-1)


def gap(found: Array, wanted: Array) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


@pytest.mark.parametrize("rank", [1, 2, 8])
def test_a_variant_at_every_weight_is_other_weights(backend: Backend, folder: Path, rank: int) -> None:
    variant = random_variant(backend, np.random.default_rng(rank), rank)
    assert len(variant.deltas) >= 2 + 4 * backend.info.n_layers
    use = BoundUse(backend.weight_table.bind(variant), 0.5)
    [found], [plain] = ran(backend, [TOKENS], [(use,)]), ran(backend, [TOKENS], [()])
    wanted = expected(folder, variant, 0.5)
    assert gap(found, wanted) <= BESIDE_REFERENCE
    assert gap(plain, wanted) >= 1e-3


def test_each_weight_by_itself(backend: Backend, folder: Path) -> None:
    """Several in one batch, so that each is computed beside others too."""
    whole = random_variant(backend, np.random.default_rng(3))
    parts = [whole.only(name) for name in whole.deltas if name.partition(".")[2] in ("", "1")]
    uses = [(BoundUse(backend.weight_table.bind(part)),) for part in parts]
    for part, found in zip(parts, ran(backend, [TOKENS] * len(parts), uses), strict=True):
        assert gap(found, expected(folder, part)) <= BESIDE_REFERENCE, list(part.deltas)


def test_at_some_rows_only(backend: Backend, folder: Path) -> None:
    variant = random_variant(backend, np.random.default_rng(4), leave_out=("w_embed",))
    use = BoundUse(backend.weight_table.bind(variant), where=Where(phase="generated"))
    [found], [plain] = ran(backend, [TOKENS], [(use,)], PROMPT), ran(backend, [TOKENS], [()], PROMPT)
    rows = np.arange(len(TOKENS)) >= PROMPT
    assert gap(found, expected(folder, variant, rows=rows)) <= BESIDE_REFERENCE
    assert np.array_equal(found[:PROMPT], plain[:PROMPT])


def test_eight_variants_in_one_batch_and_rows_without_any(backend: Backend) -> None:
    """Each as alone; those without: to the bit what they are beside sequences that have none either."""
    rng = np.random.default_rng(6)
    tokens = [TOKENS[: 3 + i] for i in range(10)]
    bound = [backend.weight_table.bind(random_variant(backend, rng, 1 + i % 3, share=0.6)) for i in range(8)]
    uses: list[tuple[BoundUse, ...]] = [*((BoundUse(one),) for one in bound), (), ()]
    beside, nobody = ran(backend, tokens, uses), ran(backend, tokens, [()] * 10)
    for own, use, found, plain in zip(tokens, uses, beside, nobody, strict=True):
        if not use:
            assert np.array_equal(found, plain)
            continue
        [alone] = ran(backend, [own], [use])
        assert gap(found, alone) <= MOST
        assert gap(found, plain) >= 1e-4


def test_a_stack_is_a_sum(backend: Backend) -> None:
    rng = np.random.default_rng(7)
    a, b = (random_variant(backend, rng) for _ in range(2))
    bind = backend.weight_table.bind
    stacks = [
        (BoundUse(bind(a)), BoundUse(bind(b))),
        (BoundUse(bind(b)), BoundUse(bind(a))),
        (BoundUse(bind(a + b)),),
        (BoundUse(bind(a), 0.5), BoundUse(bind(a), 0.5), BoundUse(bind(b))),
    ]
    found = ran(backend, [TOKENS] * 4, stacks)
    assert max(gap(one, found[0]) for one in found) <= 1e-6  # a sum's biases are rounded to float32
    [nothing], [plain] = (
        ran(backend, [TOKENS], [(BoundUse(bind(a)), BoundUse(bind(a), -1.0))]),
        ran(backend, [TOKENS], [()]),
    )
    assert gap(nothing, plain) <= MOST


def test_numbers_beyond_are_their_owners_alone(backend: Backend) -> None:
    rng = np.random.default_rng(8)
    sane = random_variant(backend, rng)
    huge = Variant({name: delta.scaled(1e38) for name, delta in random_variant(backend, rng).deltas.items()})
    bound = [backend.weight_table.bind(one) for one in (sane, huge)]
    uses: list[tuple[BoundUse, ...]] = [(BoundUse(bound[0]),), (BoundUse(bound[1], 1e300),)]
    made = [sequence(backend, TOKENS[:5], READ, name=f"s{i}") for i in range(3)]
    for one, use in zip(made, [*uses, ()], strict=True):
        one.plan.uses = use
    with np.errstate(all="ignore"):
        found = backend.run(made)
    [alone], [plain] = ran(backend, [TOKENS[:5]], [uses[0]]), ran(backend, [TOKENS[:5]], [()])
    rows = [np.concatenate([np.concatenate(list(r.values), axis=-1) for r in result.rows], axis=-1) for result in found]
    assert gap(rows[0], alone) <= MOST
    assert gap(rows[2], plain) <= MOST
    assert not np.isfinite(rows[1]).all()


def test_the_device_keeps_no_more_than_is_allowed(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was used longest ago goes, and is made again when it is named."""
    rng, deltas = np.random.default_rng(9), backend.executor.deltas  # pyright: ignore[reportAttributeAccessIssue] - of both
    bound = [backend.weight_table.bind(random_variant(backend, rng, 1)) for _ in range(4)]
    before = [ran(backend, [TOKENS], [(BoundUse(one),)])[0] for one in bound]
    size = sum(factors.nbytes for factors in bound[0].factors.values())
    monkeypatch.setattr(deltas, "most_bytes", 2 * size)
    for one, wanted in zip(bound, before, strict=True):
        assert np.array_equal(ran(backend, [TOKENS], [(BoundUse(one),)])[0], wanted)
        assert sum(deltas._nbytes.values()) <= 2 * size
        assert one.hash in deltas._ready
