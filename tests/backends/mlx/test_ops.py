"""The MLX operations that are more than one call."""

from __future__ import annotations

import mlx.core as mx
import numpy as np

from probewire.backends.mlx.ops import MlxOps, to_numpy
from probewire.protos.tensors import numpy_dtype

OPS = MlxOps()


def test_a_copy_does_not_see_later_writes() -> None:
    lazy = mx.arange(6).reshape(2, 3) * 2
    alias, copy = lazy, OPS.copy(lazy)
    rows = lazy[0]
    lazy[0] = mx.array([9, 9, 9])
    assert alias[0].tolist() == [9, 9, 9], "a residual branch sees what is written in place"
    assert copy[0].tolist() == rows.tolist() == [0, 2, 4]


def test_put_along_any_axis() -> None:
    x = mx.zeros((2, 3, 4))
    for axis, shape in ((0, (1, 3, 4)), (1, (2, 1, 4)), (-1, (2, 3, 1))):
        new = OPS.put(x, OPS.index(np.array([1])), axis, mx.ones(shape))
        expected = np.zeros((2, 3, 4))
        np.moveaxis(expected, axis, 0)[1] = 1
        assert np.array_equal(np.array(new), expected)
    assert not np.array(x).any()


def test_top_k_is_descending() -> None:
    x = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    for k in (1, 7, 50):
        values, index = OPS.top_k(mx.array(x), k)
        order = np.argsort(-x, axis=-1)[:, :k]
        assert np.array_equal(np.array(index), order)
        assert np.array(index).dtype == np.int64
        assert np.array_equal(np.array(values), np.take_along_axis(x, order, -1))


def test_bfloat16_reaches_numpy_to_the_bit() -> None:
    x = mx.array([1.0, -2.5, 3.14159]).astype(mx.bfloat16)
    [host, wide] = to_numpy([x, x.astype(mx.float32)])
    assert host.dtype == numpy_dtype("bfloat16")
    assert np.array_equal(host.astype(np.float32), wide)
    assert host.flags.owndata or host.base is not None
