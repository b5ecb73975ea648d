"""Log-probabilities and divergences against float64, in the widest float of a device and in float32 where it has no wider."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
import torch

from probewire.backends import distributions
from probewire.backends.distributions import divergence, log_probability, next_log_probability
from probewire.backends.mlx.ops import MlxOps
from probewire.backends.torch.ops import TorchOps
from probewire.protos.tensors import Array

LARGE = 260_000
"""Tokens of today's largest vocabularies."""


class Float32(MlxOps):
    """A GPU that has no float64."""

    def wide(self, x: mx.array) -> mx.array:
        return x.astype(mx.float32)

    def device(self, array: Array) -> mx.array:
        return super().device(array.astype(np.float32))


OPS: dict[str, Any] = {"torch": TorchOps(torch.device("cpu")), "mlx": MlxOps(), "float32": Float32()}
each = pytest.mark.parametrize("ops", OPS.values(), ids=OPS.keys())


def _host(ops: Any, value: Any) -> Array:
    [found] = ops.to_host([value])
    return np.asarray(found, dtype=np.float64)


def _log_softmax(row: Array) -> Array:
    shifted = row.astype(np.float64) - float(row.max())
    return shifted - np.log(np.exp(shifted).sum())


def _kl(p_row: Array, q_row: Array) -> float:
    """In extended precision, with 0·log 0 = 0."""
    p, q = (np.asarray(row, dtype=np.longdouble) for row in (p_row, q_row))
    p, q = p - p.max(), q - q.max()
    log_p, log_q = p - np.log(np.exp(p).sum()), q - np.log(np.exp(q).sum())
    weights = np.exp(log_p)
    at = weights > 0
    return float((weights[at] * (log_p[at] - log_q[at])).sum())


def _rows(n: int, vocab: int, seed: int, *, spread: float = 4.0) -> Array:
    return (np.random.default_rng(seed).normal(size=(n, vocab)) * spread).astype(np.float32)


@each
@pytest.mark.parametrize("vocab", [7, 1000, LARGE])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_log_probabilities(ops: Any, vocab: int, dtype: str) -> None:
    rows = _rows(3, vocab, seed=vocab, spread=2.0).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)
    tokens = np.array([0, vocab // 2, vocab - 1])
    expected = np.array([_log_softmax(row)[token] for row, token in zip(rows, tokens, strict=True)])
    found = _host(ops, next_log_probability(ops, ops.exact(rows), tokens)[0])
    assert np.abs(found - expected).max() <= 1e-6
    for token in tokens:
        one = _host(ops, log_probability(ops, ops.exact(rows), (int(token),)))
        assert np.abs(one - [_log_softmax(row)[token] for row in rows]).max() <= 1e-6


@each
def test_the_probability_of_a_set_is_the_sum(ops: Any) -> None:
    rows = _rows(4, LARGE, seed=1)
    for tokens in ((3, 9), tuple(range(100, 1100)), tuple(range(LARGE))):
        expected = [float(np.log(np.exp(_log_softmax(row)[list(tokens)]).sum())) for row in rows]
        found = _host(ops, log_probability(ops, ops.exact(rows), tokens))
        assert np.abs(found - expected).max() <= 2e-6
        assert (found <= 0).all(), "a probability above 1"


@each
def test_two_equal_logits_share_the_probability_however_large(ops: Any) -> None:
    for large in (0.0, 1e8, -1e8, 3e38):
        row = np.array([[large, large]], dtype=np.float32)
        assert _host(ops, log_probability(ops, ops.exact(row), (1,)))[0] == pytest.approx(-np.log(2), abs=1e-7)
        assert _host(ops, next_log_probability(ops, ops.exact(row), np.array([0]))[0])[0] == pytest.approx(
            -np.log(2), abs=1e-7
        )
        assert _host(ops, divergence(ops, row, ops.exact(row)))[0] == 0.0


@each
@pytest.mark.parametrize("vocab", [5, 1000, LARGE])
@pytest.mark.parametrize("size", [0.0, 1e-6, 1e-4, 1e-2, 0.3, 1.0, 5.0])
def test_a_divergence_is_that_of_float64_and_never_negative(ops: Any, vocab: int, size: float) -> None:
    [base, change] = _rows(2, vocab, seed=vocab + 1)
    base, moved = base + np.float32(17.0), base + np.float32(17.0) + np.float32(size) * change
    expected = _kl(base, moved)
    found = _host(ops, divergence(ops, base, ops.exact(moved[None])))[0]
    assert found >= 0.0
    narrow = isinstance(ops, Float32)
    assert found == pytest.approx(expected, rel=1e-4 if narrow else 1e-9, abs=1e-12 if narrow else 1e-17)
    assert abs(found - expected) <= 1e-6 * max(1.0, expected)


@each
def test_a_divergence_of_bfloat16_rows(ops: Any) -> None:
    [base, moved] = _rows(2, LARGE, seed=3).astype(ml_dtypes.bfloat16)
    found = _host(ops, divergence(ops, base, ops.exact(moved[None])))[0]
    assert found == pytest.approx(_kl(base.astype(np.float32), moved.astype(np.float32)), rel=1e-6)


@each
def test_random_rows_are_never_negative(ops: Any) -> None:
    """Rounding alone may not make a divergence."""
    rng = np.random.default_rng(4)
    for _ in range(100):
        vocab = int(rng.integers(2, 400))
        base = (rng.normal(size=vocab) * 10 ** rng.uniform(-2, 3)).astype(np.float32)
        nudged = np.nextafter(base, np.where(rng.random(vocab) < 0.5, -np.inf, np.inf).astype(np.float32))
        moved = nudged if rng.random() < 0.5 else base + np.float32(10 ** rng.uniform(-6, 2)) * rng.normal(size=vocab)
        moved = moved.astype(np.float32)
        found, expected = _host(ops, divergence(ops, base, ops.exact(moved[None])))[0], _kl(base, moved)
        assert found >= 0.0
        assert found == pytest.approx(expected, rel=1e-4 if isinstance(ops, Float32) else 1e-9, abs=1e-9)


@each
def test_masked_entries(ops: Any) -> None:
    """0·log 0 = 0; what the baseline may say and the other cannot is infinitely far."""
    none = -np.inf
    both, own = np.array([1.0, none, 2.0, none], np.float32), np.array([1.5, none, 1.0, 0.5], np.float32)
    assert 0.0 <= _host(ops, divergence(ops, both, ops.exact(both[None])))[0] <= 1e-15
    expected = _kl(both[[0, 2, 3]], own[[0, 2, 3]])
    assert _host(ops, divergence(ops, both, ops.exact(own[None])))[0] == pytest.approx(expected, rel=1e-6)
    assert _host(ops, divergence(ops, own, ops.exact(both[None])))[0] == np.inf
    found = _host(ops, log_probability(ops, ops.exact(both[None]), (0,)))[0]
    assert found == pytest.approx(-np.log1p(np.e), rel=1e-6)
    for tokens in ((1,), (1, 3)):
        assert _host(ops, log_probability(ops, ops.exact(both[None]), tokens))[0] == -np.inf
    assert _host(ops, log_probability(ops, ops.exact(both[None]), (0, 1, 3)))[0] == pytest.approx(found, rel=1e-6)


@each
def test_what_is_no_distribution_is_no_number(ops: Any) -> None:
    good = np.array([1.0, 2.0, 3.0], np.float32)
    for bad in ([1.0, np.nan, 2.0], [1.0, np.inf, 2.0], [-np.inf] * 3):
        row = np.array(bad, np.float32)
        assert np.isnan(_host(ops, divergence(ops, good, ops.exact(row[None])))[0])
        assert np.isnan(_host(ops, divergence(ops, row, ops.exact(good[None])))[0])
        assert np.isnan(_host(ops, log_probability(ops, ops.exact(row[None]), (0,)))[0])


@each
def test_many_rows_are_taken_in_parts(ops: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, base = _rows(7, 50, seed=5), _rows(1, 50, seed=6)[0]

    def found() -> list[Array]:
        on = ops.exact(rows)
        made = (
            divergence(ops, base, on),
            log_probability(ops, on, (3, 4)),
            next_log_probability(ops, on, np.arange(7))[0],
        )
        return [_host(ops, value) for value in made]

    whole = found()
    monkeypatch.setattr(distributions, "MAX_WIDE", 100)
    assert all(np.array_equal(part, one) for part, one in zip(found(), whole, strict=True))


def _softmax(row: Array) -> Array:
    return np.exp(_log_softmax(row))


SLOPES = {
    "divergence": divergence,
    "one": lambda ops, base, rows: log_probability(ops, rows, (3,)),
    "several": lambda ops, base, rows: log_probability(ops, rows, (3, 5, 8)),
}


@each
@pytest.mark.parametrize("kind", SLOPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("size", [1e-5, 3.0])
def test_slopes_are_differences_of_probabilities(ops: Any, kind: str, masked: bool, size: float) -> None:
    [base, change] = _rows(2, 40, seed=7)
    row = base + np.float32(size) * change
    if masked:
        base[[4, 5]] = row[[4, 5]] = -np.inf
    if isinstance(ops, TorchOps):
        on = torch.from_numpy(row)[None].requires_grad_()
        SLOPES[kind](ops, base, on).sum().backward()
        assert on.grad is not None
        found = on.grad[0].double().numpy()
    else:
        grad = mx.grad(lambda x: SLOPES[kind](ops, base, x[None]).sum())(mx.array(row))
        found = np.array(grad).astype(np.float64)
    p = _softmax(row)
    if kind == "divergence":
        expected = p - _softmax(base)
    else:
        chosen = np.zeros(40)
        at = [3] if kind == "one" else [3, 5, 8]
        chosen[at] = _softmax(row[at])
        expected = chosen - p
    scale = float(np.abs(expected).max())
    assert np.abs(found - expected).max() <= 1e-6 * (max(scale, 0.1) if isinstance(ops, Float32) else scale)
