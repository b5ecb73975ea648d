"""Devices that are none: tensors which say that they lie on cpu:1 or cpu:2, are computed on the CPU, and do not mix.

As on GPUs, an operation over tensors of two devices raises, and a copy from one to the other does not. So what is made for
several GPUs runs here with its real numbers, and a tensor that was left behind on another device cannot go unseen.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

__all__ = ["VirtualDevices", "VirtualTensor"]

HOST = torch.device("cpu")
_STOCK_TENSOR = torch.tensor
_INTO = torch.ops.aten.copy_
_INDEXED = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_)
_COPIES = (torch.ops.aten._to_copy, torch.ops.aten.to)


class VirtualTensor(torch.Tensor):
    """One that lies on a device that is none."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device) -> VirtualTensor:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=device,
        )

    def __init__(self, inner: torch.Tensor, device: torch.device) -> None:
        self.held = inner

    def __repr__(self, **_: Any) -> str:
        return f"{self.held} on {self.device}"

    def tolist(self) -> Any:
        """Read without a copy, as every tensor's is on the CPU."""
        return self.held.tolist()

    def data_ptr(self) -> int:
        """Of the numbers."""
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        """Of the numbers."""
        return self.held.untyped_storage()

    __torch_function__: Any = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class VirtualDevices(TorchDispatchMode):
    """While it is on, tensors can be made on such devices and moved to them."""

    def __enter__(self) -> VirtualDevices:
        self._theirs = mock.patch("torch.tensor", _tensor)  # it dispatches nothing
        self._theirs.start()
        return super().__enter__()

    def __exit__(self, *reason: Any) -> None:
        self._theirs.stop()
        super().__exit__(*reason)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


def _tensor(data: Any, *, device: Any = None, **options: Any) -> torch.Tensor:
    made = _STOCK_TENSOR(data, **options)
    return made if device is None else made.to(device)


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    found = {t.device for t in tensors if t.ndim or t.device != HOST}  # numbers of the host go with everything
    if func.overloadpacket in _INDEXED:  # and so do its row numbers
        found = {value.device for value in (args[0], *args[2:]) if isinstance(value, torch.Tensor) and value.ndim}
    if func.overloadpacket not in (*_COPIES, _INTO) and len(found) > 1:
        names = " and ".join(sorted(map(str, found)))
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {names}! ({func})"
        )
    home = args[0].device if func.overloadpacket is _INTO else next(iter(found), HOST)
    if kwargs.get("device") is not None:
        home = torch.device(kwargs["device"])
        if home.type == "cpu":
            kwargs = {**kwargs, "device": HOST}
    inside = tree_map_only(torch.Tensor, lambda t: t.held if isinstance(t, VirtualTensor) else t, (args, kwargs))
    out = func(*inside[0], **inside[1])
    if func.overloadpacket in _COPIES and out is inside[0][0] and home != args[0].device:
        out = out.clone()  # between devices nothing is shared
    if home.type != "cpu" or home.index is None:
        return args[0] if func.overloadpacket is _INTO else out
    known = {id(t.held): t for t in tensors if isinstance(t, VirtualTensor)}
    with torch.inference_mode(mode=False):  # a view of what was made outside is nothing of that mode's either
        out = tree_map_only(torch.Tensor, lambda t: known[id(t)] if id(t) in known else VirtualTensor(t, home), out)
    if func.overloadpacket in _COPIES:
        return out
    return return_and_correct_aliasing(func, args, kwargs, out)
