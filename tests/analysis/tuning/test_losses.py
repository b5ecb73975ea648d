"""Every loss, and its gradient, against paper: a model of two linear layers, h = (x·W₁)·W₂, differentiated by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from probewire.analysis.tuning.losses import (
    breaker_weights,
    breakers_loss,
    coherence_loss,
    preserve_loss,
    rmu_loss,
    sparse_loss,
    task_loss,
)

Floats = NDArray[np.float64]
RNG = np.random.default_rng(0)
X, X_RETAIN = RNG.normal(size=(2, 3, 4)), RNG.normal(size=(2, 3, 4))
"""[example, pos, d_in]"""
W1, W2 = RNG.normal(size=(4, 5)), RNG.normal(size=(5, 6))
B1, B2 = W1 + 0.3 * RNG.normal(size=W1.shape), W2 + 0.3 * RNG.normal(size=W2.shape)
"""The base's weights."""
MASK = np.array([[0, 1, 1], [0, 1, 0]])
TOLERANCE = 1e-10
"""float64"""


def base(x: Floats) -> Floats:
    return x @ B1 @ B2


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(W1, requires_grad=True), torch.tensor(W2, requires_grad=True)


def by_hand(parts: list[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    """∂L/∂W₁ and ∂L/∂W₂, from pairs (x, ∂L/∂h)."""
    first = sum(np.einsum("bpi,bpj->ij", x, dh @ W2.T) for x, dh in parts)
    second = sum(np.einsum("bpi,bpj->ij", x @ W1, dh) for x, dh in parts)
    return np.asarray(first), np.asarray(second)


def assert_gradients(found: tuple[torch.Tensor, torch.Tensor], parts: list[tuple[Floats, Floats]]) -> None:
    for tensor, expected in zip(found, by_hand(parts), strict=True):
        assert tensor.grad is not None
        np.testing.assert_allclose(tensor.grad.numpy(), expected, rtol=0, atol=TOLERANCE)


def test_rmu() -> None:
    target, alpha = RNG.normal(size=6), 3.0
    w1, w2 = tensors()
    forget, retain = (torch.tensor(x) @ w1 @ w2 for x in (X, X_RETAIN))
    mask = torch.tensor(MASK)
    loss = rmu_loss(forget, torch.tensor(target), mask, retain, torch.tensor(base(X_RETAIN)), mask, alpha)
    loss.backward()
    n = MASK.sum() * 6
    kept = MASK[..., None]
    away, moved = (X @ W1 @ W2 - target) * kept, (X_RETAIN @ W1 @ W2 - base(X_RETAIN)) * kept
    assert loss.item() == pytest.approx((away**2).sum() / n + alpha * (moved**2).sum() / n, abs=TOLERANCE)
    assert_gradients((w1, w2), [(X, 2 * away / n), (X_RETAIN, 2 * alpha * moved / n)])


def test_circuit_breakers() -> None:
    w1, w2 = tensors()
    mask = torch.tensor(MASK)
    pairs = [(torch.tensor(x) @ w1 @ w2, torch.tensor(base(x))) for x in (X, X_RETAIN)]
    loss = breakers_loss([pairs[0]], mask, [pairs[1]], mask, (2.0, 0.5))
    loss.backward()
    h, h0 = X @ W1 @ W2, base(X)
    lengths, lengths0 = np.linalg.norm(h, axis=-1, keepdims=True), np.linalg.norm(h0, axis=-1, keepdims=True)
    cosine = (h * h0).sum(-1, keepdims=True) / (lengths * lengths0)
    counts = MASK[..., None] * (cosine > 0)
    assert 0 < counts.sum() < MASK.sum() + 1
    difference = (X_RETAIN @ W1 @ W2 - base(X_RETAIN)) * MASK[..., None]
    norms = np.linalg.norm(difference, axis=-1, keepdims=True)
    n = MASK.sum()
    expected = 2.0 * (cosine * counts).sum() / n + 0.5 * norms.sum() / n
    assert loss.item() == pytest.approx(expected, abs=TOLERANCE)
    turned = counts * (h0 / lengths0 - cosine * h / lengths) / lengths
    kept = difference / np.where(norms > 0, norms, 1)
    assert_gradients((w1, w2), [(X, 2.0 * turned / n), (X_RETAIN, 0.5 * kept / n)])


def test_weights_of_the_breakers_move_in_a_line() -> None:
    assert breaker_weights(0, 10, 4.0) == (4.0, 0.0)
    assert breaker_weights(5, 10, 4.0) == (3.0, 1.0)
    assert breaker_weights(10, 10, 4.0) == (2.0, 2.0)


def test_coherence_is_of_what_lies_outside() -> None:
    outside = np.array([True, False, True, True, False])
    w1, w2 = tensors()
    hidden = torch.tensor(X) @ w1
    everything = (hidden, torch.tensor(X @ B1), torch.zeros(5, dtype=torch.bool))
    loss = coherence_loss([(hidden, torch.tensor(X @ B1), torch.tensor(outside)), everything], torch.tensor(MASK))
    loss.backward()
    moved = (X @ W1 - X @ B1) * outside * MASK[..., None]
    size = ((X @ B1 * outside) ** 2).sum(-1, keepdims=True)
    n = MASK.sum()
    assert loss.item() == pytest.approx(((moved**2).sum(-1, keepdims=True) / size).sum() / n, abs=TOLERANCE)
    assert w1.grad is not None
    expected = np.einsum("bpi,bpj->ij", X, 2 * moved / size / n)
    np.testing.assert_allclose(w1.grad.numpy(), expected, rtol=0, atol=TOLERANCE)
    assert w2.grad is None
    assert coherence_loss([everything], torch.tensor(MASK)).item() == 0


def test_task_is_the_cross_entropy_of_the_answer() -> None:
    ids, answer = np.array([[1, 2, 3], [4, 5, 0]]), np.array([[False, False, True], [False, True, False]])
    w1, w2 = tensors()
    loss = task_loss(torch.tensor(X) @ w1 @ w2, torch.tensor(ids), torch.tensor(answer))
    loss.backward()
    logits = X @ W1 @ W2
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert loss.item() == pytest.approx(-(np.log(p[0, 1, 3]) + np.log(p[1, 0, 5])) / 2, abs=TOLERANCE)
    gradient = np.zeros_like(p)
    for example, pos, token in ((0, 1, 3), (1, 0, 5)):
        gradient[example, pos] = p[example, pos] / 2
        gradient[example, pos, token] -= 0.5
    assert_gradients((w1, w2), [(X, gradient)])


def test_preserve_is_the_divergence_from_the_base() -> None:
    w1, w2 = tensors()
    loss = preserve_loss(torch.tensor(X) @ w1 @ w2, torch.tensor(base(X)), torch.tensor(MASK))
    loss.backward()

    def softmax(x: Floats) -> Floats:
        return np.exp(x) / np.exp(x).sum(-1, keepdims=True)

    p, q = softmax(base(X)), softmax(X @ W1 @ W2)
    n = MASK.sum()
    assert loss.item() == pytest.approx(((p * np.log(p / q)).sum(-1) * MASK).sum() / n, abs=TOLERANCE)
    assert_gradients((w1, w2), [(X, (q - p) * MASK[..., None] / n)])


def test_sparse_sums_the_norms_of_rows() -> None:
    a = torch.tensor(RNG.normal(size=(2, 4)), requires_grad=True)
    b = torch.tensor(RNG.normal(size=(3, 2)), requires_grad=True)
    with torch.no_grad():
        b[1] = 0
    loss = sparse_loss([(a, b)])
    loss.backward()
    A, B = a.detach().numpy(), b.detach().numpy()
    norms = np.linalg.norm(B @ A, axis=1)
    assert loss.item() == pytest.approx(norms.sum(), abs=TOLERANCE)
    unit = (B @ A) / np.where(norms > 0, norms, 1)[:, None]
    assert a.grad is not None
    assert b.grad is not None
    np.testing.assert_allclose(a.grad.numpy(), B.T @ unit, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(b.grad.numpy(), unit @ A.T, rtol=0, atol=TOLERANCE)
