"""Float32 products on the CPU are torch's own to a few units of the last place, and so are their derivatives."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.nn.functional import linear as stock

from probewire.backends.torch import linear as module
from probewire.backends.torch.linear import PackedWeight, linear, pack, use_in


def tensors(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(*shape, 48, dtype=dtype), torch.randn(96, 48, dtype=dtype), torch.randn(96, dtype=dtype)


@pytest.mark.parametrize("shape", [(1,), (7,), (2, 5), (1, 1), (3, 1, 4), (0,), (16,), (129,), (3, 81)])
@pytest.mark.parametrize("biased", [False, True])
def test_equals_torchs_own(shape: tuple[int, ...], biased: bool) -> None:
    x, weight, bias = tensors(*shape)
    found = linear(x, weight, bias if biased else None)
    torch.testing.assert_close(found, stock(x, weight, bias if biased else None), rtol=1e-5, atol=1e-5)


def test_rows_that_do_not_lie_one_behind_the_other() -> None:
    x, weight, _ = tensors(6, 4)
    torch.testing.assert_close(linear(x[:, ::2], weight), stock(x[:, ::2], weight), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        linear(x.transpose(0, 1), weight), stock(x.transpose(0, 1), weight), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_torchs_own_to_the_bit(dtype: torch.dtype) -> None:
    x, weight, bias = tensors(5, dtype=dtype)
    assert torch.equal(linear(x, weight, bias), stock(x, weight, bias))


def test_its_derivative() -> None:
    x, weight, bias = tensors(2, 5)
    grads: list[torch.Tensor] = []
    for product in (linear, stock):
        own = x.clone().requires_grad_()
        (product(own, weight, bias) ** 2).sum().backward()
        assert own.grad is not None
        grads.append(own.grad)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-4)


def test_many_derivatives_at_once() -> None:
    x, weight, _ = tensors(5)
    own, eye = x.clone().requires_grad_(), torch.eye(96)
    (found,) = torch.autograd.grad(linear(own, weight)[2], own, eye, is_grads_batched=True)
    torch.testing.assert_close(found[:, 2], weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1,), (7,), (2, 5), (3, 1, 4), (0,), (129,)])
@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float64, 0)])
def test_a_packed_weight(shape: tuple[int, ...], across: bool, dtype: torch.dtype, tolerance: float) -> None:
    x, weight, bias = tensors(*shape, dtype=dtype)
    given = weight.T.contiguous().T if across else weight
    found = linear(x, pack(given), bias)
    assert found.dtype == dtype
    torch.testing.assert_close(found, stock(x, weight, bias), rtol=tolerance, atol=tolerance * 10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_derivative_past_a_packed_weight(dtype: torch.dtype, tolerance: float) -> None:
    x, weight, _ = tensors(5, dtype=dtype)
    own = x.clone().requires_grad_()
    (found,) = torch.autograd.grad(linear(own, pack(weight)).sum(), own)
    torch.testing.assert_close(found, weight.sum(0).expand(5, 48), rtol=tolerance, atol=tolerance * 20)


def test_a_weight_that_learns_is_not_packed() -> None:
    _, weight, _ = tensors(5)
    assert isinstance(pack(weight.requires_grad_()), torch.Tensor)


@pytest.mark.skipif(not module._HAS_ONEDNN, reason="torch has no oneDNN for this machine")
def test_what_does_not_learn_is_packed() -> None:
    packed = pack(tensors(5)[1])
    assert isinstance(packed, PackedWeight)
    assert torch.equal(packed.packed.to_dense(), packed.plain)


def test_a_weight_that_learns_gets_its_gradient() -> None:
    x, weight, _ = tensors(5)
    weight.requires_grad_()
    linear(x, weight).sum().backward()
    assert weight.grad is not None


def _model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 96), nn.ReLU(), nn.Linear(96, 8)).requires_grad_(False).to(dtype)


@pytest.mark.parametrize("spare", [0, None, 1 << 30])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float64, 0)])
def test_a_models_layers_keep_their_hooks(spare: int | None, dtype: torch.dtype, tolerance: float) -> None:
    model, x, seen = _model(dtype), torch.randn(3, 48, dtype=dtype), list[torch.Size]()
    expected = model(x)
    model[0].register_forward_hook(lambda *args: seen.append(args[2].shape))
    use_in(model, spare)
    torch.testing.assert_close(model(x), expected, rtol=tolerance, atol=tolerance)
    assert seen == [(3, 96)]


def _packs(monkeypatch: pytest.MonkeyPatch, model: nn.Module, spare: int | None) -> int:
    """How many layers are multiplied from a copy."""
    seen: list[object] = []
    use_in(model, spare)
    monkeypatch.setattr(module, "linear", lambda *args: (seen.append(args[1]), stock(args[0], *_plain(args[1:])))[1])
    model(torch.randn(3, 48))
    return sum(isinstance(weight, PackedWeight) for weight in seen)


def _plain(weight_and_bias: tuple[Any, ...]) -> tuple[Any, ...]:
    weight, *bias = weight_and_bias
    return (weight.plain if isinstance(weight, PackedWeight) else weight, *bias)


@pytest.mark.skipif(not module._HAS_ONEDNN, reason="torch has no oneDNN for this machine")
@pytest.mark.parametrize(("spare", "packed"), [(0, 0), (None, 0), (4 * 21_504 - 1, 0), (4 * 21_504, 2)])
def test_weights_are_copied_where_a_quarter_of_the_free_memory_holds_them(
    monkeypatch: pytest.MonkeyPatch, spare: int | None, packed: int
) -> None:
    assert _packs(monkeypatch, _model(), spare) == packed


def test_a_weight_that_changes_leaves_its_copy_behind() -> None:
    model, x = _model(), torch.randn(3, 48)
    use_in(model, 1 << 30)
    first = cast("nn.Linear", model[0])
    first.weight.mul_(2)
    cast("nn.Linear", model[2]).weight = nn.Parameter(torch.ones(8, 96), requires_grad=False)
    expected = stock(torch.relu(stock(x, first.weight, first.bias)), torch.ones(8, 96), cast("Any", model[2]).bias)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_that_is_cast_later_leaves_its_copies_behind(dtype: torch.dtype) -> None:
    model, x = _model(), torch.randn(3, 48, dtype=dtype)
    use_in(model, 1 << 30)
    first = cast("nn.Linear", model.to(dtype)[0])
    torch.testing.assert_close(first(x), stock(x, first.weight, first.bias), rtol=0, atol=0)


def test_a_weight_whose_data_is_replaced_leaves_its_copy_behind() -> None:
    model, x = _model(), torch.randn(3, 48)
    use_in(model, 1 << 30)
    first = cast("nn.Linear", model[0])
    first.weight.data = torch.ones(96, 48)
    torch.testing.assert_close(first(x), stock(x, torch.ones(96, 48), first.bias), rtol=1e-5, atol=1e-5)


def test_a_bias_that_does_not_lie_one_behind_the_other() -> None:
    x, weight, bias = tensors(5)
    strided = torch.stack([bias, bias + 3], dim=1)[:, 0]
    for given in (weight, pack(weight)):
        torch.testing.assert_close(linear(x, given, strided), stock(x, weight, bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("n", "sizes"), [(1, [1]), (15, [15]), (16, [16]), (47, [32, 15]), (300, [128, 128, 32, 12]), (256, [128, 128])]
)
def test_it_is_asked_for_few_sizes(n: int, sizes: list[int]) -> None:
    assert module._sizes(n) == sizes


@pytest.mark.skipif(not module._HAS_ONEDNN, reason="torch has no oneDNN for this machine")
def test_it_is_onednn_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "stock", None)
    x, weight, bias = tensors(5)
    assert linear(x, weight, bias).shape == (5, 96)
