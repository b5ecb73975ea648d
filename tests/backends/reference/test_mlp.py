"""MLPs of one or two neurons, worked out on paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probewire.backends.reference.linear import Linear
from probewire.backends.reference.mlp import ACTIVATIONS, Experts, GatedMlp, PlainMlp, clipped_swiglu
from probewire.backends.reference.tap import untouched
from probewire.protos.sites import Site

Array = np.ndarray[Any, Any]

ROW = np.array([[1.0, 2.0]])
SUM = Linear(np.array([[1.0], [1.0]]))
"""3 of the row."""
LAST = Linear(np.array([[0.0], [1.0]]))
"""2 of the row."""
SPREAD = Linear(np.array([[1.0, 10.0]]))


@pytest.mark.parametrize(
    ("name", "at_one"),
    [
        ("relu", 1.0),
        ("silu", 0.7310586),
        ("gelu", 0.8413447),
        ("gelu_new", 0.8411920),
        ("gelu_pytorch_tanh", 0.8411920),
    ],
)
def test_activation(name: str, at_one: float) -> None:
    activation = ACTIVATIONS[name]
    np.testing.assert_allclose(activation(np.array([1.0, 0.0, -100.0])), [at_one, 0, 0], atol=1e-7)
    assert activation(np.ones(1, np.float32)).dtype == np.float32


def test_plain_mlp() -> None:
    out, read = PlainMlp(SUM, SPREAD, ACTIVATIONS["relu"])(ROW, 0, untouched)
    np.testing.assert_array_equal(out, [[3, 30]])
    np.testing.assert_array_equal(read, [[3]])


def test_gated_mlp() -> None:
    out, _ = GatedMlp(SUM, LAST, SPREAD, ACTIVATIONS["relu"])(ROW, 0, untouched)
    np.testing.assert_array_equal(out, [[6, 60]])


def test_clipped_swiglu() -> None:
    # the gate is bounded above alone, the linear branch on both sides; sigmoid(0) is a half
    gate, up = np.array([9.0, -9.0, 2.0]), np.array([9.0, -9.0, 1.0])
    np.testing.assert_allclose(
        clipped_swiglu(gate, up, alpha=0.0, limit=7.0), [7 * 0.5 * 8, -9 * 0.5 * -6, 2 * 0.5 * 2]
    )


def experts() -> Experts:
    """Three, of which two are active; expert e writes 10^e, whatever it reads."""
    nothing = Linear(np.zeros((2, 1)))
    writing = [Linear(np.zeros((1, 2)), np.array([10.0**e, 0.0])) for e in range(3)]
    router = Linear(np.zeros((2, 3)), np.log([1.0, 2.0, 3.0]))
    return Experts(router, tuple((nothing, nothing, down) for down in writing), n_active=2, alpha=1.0, limit=7.0)


def test_experts_share_by_a_softmax_over_the_chosen() -> None:
    out, read = experts()(ROW, 0, untouched)
    np.testing.assert_allclose(out, [[0.4 * 10 + 0.6 * 100, 0]])
    assert read is None


def test_edited_router_logits_route_anew() -> None:
    def tap(site: Site, value: Array, linear_input: Array | None = None) -> Array:
        return value + np.log([9.0, 1.0, 1.0]) if site.name == "router_logits" else value

    out, _ = experts()(ROW, 0, tap)  # 9, 2 and 3
    np.testing.assert_allclose(out, [[0.75 * 1 + 0.25 * 100, 0]])
