"""Values of packed codes, against the libraries that define them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch

from probewire.backends.checkpoints.quantised.codes import affine, e2m1, e4m3, e8m0, unpacked


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_integers_on_a_scale(bits: int, group: int) -> None:
    words, scales, biases = mx.quantize(mx.random.normal((6, 256), key=mx.random.key(1)), group_size=group, bits=bits)
    expected = np.array(mx.dequantize(words, scales, biases, group_size=group, bits=bits))
    np.testing.assert_allclose(
        affine(np.array(words), np.array(scales), np.array(biases), bits), expected, rtol=1e-6, atol=1e-6
    )


def test_bits_lie_one_behind_the_other() -> None:
    stream = np.array([0b10001000, 0b11000110, 0b11111010] * 4, np.uint8).view(np.uint32)
    assert unpacked(stream, 3).tolist() == list(range(8)) * 4


def test_floats_of_four_bits() -> None:
    words, scales = mx.quantize(mx.random.normal((6, 256), key=mx.random.key(2)), 32, 4, "mxfp4")[:2]
    expected = np.array(mx.dequantize(words, scales, group_size=32, bits=4, mode="mxfp4").astype(mx.float32))
    assert np.array_equal(e2m1(np.array(words), e8m0(np.array(scales))), expected)


def test_floats_of_eight_bits() -> None:
    every = np.arange(256, dtype=np.uint8)
    expected = torch.from_numpy(every).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(e4m3(every), expected)
    scales = torch.from_numpy(every[1:255]).view(torch.float8_e8m0fnu).float().numpy()
    np.testing.assert_array_equal(e8m0(every[1:255]), scales)
