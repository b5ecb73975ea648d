"""Orthonormal bases, on directions worked out on paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probewire.backends.bases import gram_schmidt, span_basis
from probewire.protos.errors import InvalidArgument

Array = np.ndarray[Any, Any]


def floats(values: Any) -> Array:
    return np.array(values, dtype=np.float32)


def projector(basis: Array) -> Array:
    """The matrix that keeps what lies in the span."""
    return basis.T @ basis


def test_span_of_dependent_directions_is_reduced() -> None:
    basis = span_basis(floats([[1, 1, 0], [2, 2, 0], [0, 0, 5]]))
    assert basis.shape == (2, 3)
    np.testing.assert_allclose(projector(basis), [[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0, 1]], atol=1e-6)


def test_span_of_more_directions_than_coordinates_is_the_space() -> None:
    basis = span_basis(floats([[1, 0], [1, 1], [0, 3]]))
    np.testing.assert_allclose(projector(basis), np.eye(2), atol=1e-6)


def test_span_of_one_vector() -> None:
    np.testing.assert_allclose(projector(span_basis(floats([3, 4]))), [[0.36, 0.48], [0.48, 0.64]], atol=1e-6)


def test_gram_schmidt_keeps_order_and_sign() -> None:
    basis = gram_schmidt(floats([[-2, 0, 0], [1, 3, 0], [1, 1, -4]]))
    np.testing.assert_allclose(basis, [[-1, 0, 0], [0, 1, 0], [0, 0, -1]], atol=1e-6)


@pytest.mark.parametrize("directions", [[[1, 2], [2, 4]], [[1, 0], [0, 0]], [[1, 0], [0, 1], [1, 1]]])
def test_gram_schmidt_refuses_dependent_directions(directions: Any) -> None:
    with pytest.raises(InvalidArgument):
        gram_schmidt(floats(directions))


def test_bases_of_wide_directions_are_orthonormal_in_float32() -> None:
    directions = np.random.default_rng(0).standard_normal((16, 4096)).astype(np.float32)
    for basis in (span_basis(directions), gram_schmidt(directions)):
        assert basis.dtype == np.float32
        np.testing.assert_allclose(basis @ basis.T, np.eye(16), atol=2e-6)
