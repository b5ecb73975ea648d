"""Which layers are quantised at load, and what is told of it."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import torch

from probewire.backends.checkpoints.quantised.at_load import (
    bits_of,
    bytes_of,
    group_of,
    hash_as_held,
    is_layer,
    quantised_id,
    told,
)
from probewire.backends.torch.quantised import QuantisedLinear
from probewire.protos.errors import FailedPrecondition, InvalidArgument


def test_the_layers_linear_weights_are_and_nothing_else() -> None:
    for path in (
        "model.layers.3.mlp.down_proj",
        "transformer.h.0.attn.c_attn",
        "h.11.mlp.c_fc",
        "layers.0.experts.1.w1",
    ):
        assert is_layer(path, 64)
    for path in ("lm_head", "model.embed_tokens", "model.layers.0.mlp.gate", "model.layers.0.mlp.router"):
        assert not is_layer(path, 64)
    assert not is_layer("model.layers.3.mlp.down_proj", 48)
    assert [group_of(n) for n in (128, 96, 48)] == [64, 32, None]


def test_what_is_told() -> None:
    at_load = told("int4", ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"], ["model.layers.0.mlp.router"])
    assert at_load.names == {"layers.0.mlp.up_proj.weight", "layers.1.mlp.up_proj.weight"}
    assert at_load.told == "int4 at load, 2 weights in groups of 64; embeddings, output head, router as they are"
    with pytest.raises(FailedPrecondition, match="finds no layer"):
        told("int4", [], ["lm_head"])
    with pytest.raises(InvalidArgument, match="unknown quantize 'nf4'"):
        bits_of("nf4")


def test_the_id_and_the_hash_say_it() -> None:
    assert (quantised_id("m", ""), quantised_id("m", "int4")) == ("m", "m-int4")
    assert hash_as_held("ab", "") == "ab"
    assert len({hash_as_held("ab", quantize) for quantize in ("", "int4", "int8")}) == 3
    assert not hash_as_held("", "int4"), "a model without a hash has none quantised either"


def test_bytes() -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    assert bytes_of(name, (96, 64), "int4", 2) == 96 * 32 + 96 * 4
    assert bytes_of(name, (96, 64), "int8", 4) == 96 * 64 + 96 * 8
    for other, shape in (("lm_head.weight", (96, 64)), ("model.layers.0.mlp.up_proj.bias", (96,)), (name, ())):
        assert bytes_of(other, shape, "int4", 2) == 2 * int(np.prod(shape))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_rounds_as_mlx_does(bits: int, dtype: str) -> None:
    weight = torch.randn(96, 128, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    weight[3], weight[4], weight[5], weight[6] = 0, 2.5, weight[5].abs(), -weight[6].abs()
    words, scales, biases = mx.quantize(mx.array(weight.float().numpy()).astype(getattr(mx, dtype)), 64, bits)
    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    expected = np.array(mx.dequantize(words, scales, biases, 64, bits))
    layer = QuantisedLinear(weight, None, bits, 64)
    np.testing.assert_allclose(layer.unpacked(torch.float32).numpy(), expected, rtol=1e-6, atol=1e-6)
    rows = torch.randn(5, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    layer(rows).square().sum().backward()
    plain = rows.detach().requires_grad_()
    (plain @ layer.unpacked(torch.float64).T).square().sum().backward()
    torch.testing.assert_close(rows.grad, plain.grad, rtol=1e-12, atol=1e-10)
