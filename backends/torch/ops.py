"""The executor's array operations in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ...protos.tensors import Array, numpy_dtype
from .linear import PackedWeight, linear, pack

__all__ = ["TorchOps", "to_numpy", "torch_dtype"]

_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def torch_dtype(name: str) -> torch.dtype:
    """A torch dtype by its wire name."""
    return _DTYPES[name]


def to_numpy(tensor: torch.Tensor) -> Array:
    """A host tensor as numpy, bfloat16 through ml_dtypes; shares memory where it can."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(numpy_dtype("bfloat16"))
    return tensor.numpy()


class TorchOps:
    """See backends/ops.py for each method."""

    def __init__(self, device: torch.device) -> None:
        self._device = torch.empty(0, device=device).device  # as tensors name it: cuda:0 for cuda

    @property
    def here(self) -> torch.device:
        return self._device

    def near(self, x: torch.Tensor) -> None:
        self._device = x.device

    def beside(self, x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        return x.to(reference.device)

    def lasting(self) -> torch.inference_mode:
        return torch.inference_mode(mode=False)  # what inference mode makes, autograd refuses ever after

    def device(self, array: Array) -> torch.Tensor:
        dtype = np.float64 if array.dtype == np.float64 else np.float32
        return torch.from_numpy(np.array(array, dtype=dtype)).to(self._device)

    def index(self, array: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(np.array(array, dtype=np.int64)).to(self._device)

    def exact(self, array: Array) -> torch.Tensor:
        if str(array.dtype) == "bfloat16":
            bits = array.view(np.int16)
            return self.exact(bits).view(torch.bfloat16)
        return torch.from_numpy(array if array.flags.writeable else array.copy()).to(self._device)

    def int32(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(torch.int32)

    def pad_last(self, x: torch.Tensor, n: int, value: float) -> torch.Tensor:
        return torch.nn.functional.pad(x, (0, n), value=value)

    def mark_last(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x).scatter_(-1, index, 1.0)

    def take_last(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return x.gather(-1, index.long())

    def f32(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.dtype == torch.float64 else x.float()  # float64 models are edited in float64

    def like(self, x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        return x.to(reference.device, reference.dtype)

    def cast(self, x: torch.Tensor, dtype: str) -> torch.Tensor:
        return x.to(_DTYPES[dtype]) if x.is_floating_point() else x

    def lost(self, x: torch.Tensor, cast: torch.Tensor) -> torch.Tensor:
        return (cast.isinf() & x.isfinite()).reshape(len(x), -1).any(-1)

    def take(self, x: torch.Tensor, index: torch.Tensor, axis: int) -> torch.Tensor:
        return x.index_select(axis, index)

    def put(self, x: torch.Tensor, index: torch.Tensor, axis: int, values: torch.Tensor) -> torch.Tensor:
        return x.index_copy(axis, index, values)

    def where(self, mask: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.where(mask, a, b)

    def clip(self, x: torch.Tensor, low: float | None, high: float | None) -> torch.Tensor:
        return x.clamp(low, high)

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.vector_norm(x, dim=-1, keepdim=True)

    def sum0(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(0)

    def stop(self, x: torch.Tensor) -> torch.Tensor:
        return x.detach()

    def sigmoid(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x)

    def tanh(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x)

    def erf(self, x: torch.Tensor) -> torch.Tensor:
        return torch.erf(x)

    def rsqrt(self, x: torch.Tensor) -> torch.Tensor:
        return torch.rsqrt(x)

    def zeros_like(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(x)

    def transpose_last(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(-1, -2)

    def weight(self, array: Array) -> torch.Tensor | PackedWeight:
        if self._device.type != "cpu":
            return self.exact(np.ascontiguousarray(array.T))
        return pack(self.exact(array).T)

    def linear(self, x: torch.Tensor, weight: torch.Tensor | PackedWeight) -> torch.Tensor:
        return linear(x, weight)

    def top_k(self, x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        values, index = x.topk(k, dim=-1)
        return values, index

    def wide(self, x: torch.Tensor) -> torch.Tensor:
        return x.double()

    def exp(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp()

    def exp_less(self, x: torch.Tensor) -> torch.Tensor:
        return (x.expm1() - x).clamp(min=0.0)

    def max_last(self, x: torch.Tensor) -> torch.Tensor:
        return x.amax(-1, keepdim=True)

    def sum_last(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(-1)

    def gather_last(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return x.gather(-1, index[:, None])[:, 0]

    def copy(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(tensors))

    def stack(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack(list(tensors))

    def to_host(self, tensors: Sequence[torch.Tensor]) -> list[Array]:
        out: list[Array | None] = [None] * len(tensors)
        for kind in {(t.device, t.dtype) for t in tensors}:
            picked = [i for i, t in enumerate(tensors) if (t.device, t.dtype) == kind]
            flat = to_numpy(torch.cat([tensors[i].detach().reshape(-1) for i in picked]))
            start = 0
            for i in picked:
                shape, size = tuple(tensors[i].shape), tensors[i].numel()
                out[i] = flat[start : start + size].reshape(shape)
                start += size
        return [array for array in out if array is not None]
