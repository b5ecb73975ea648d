"""One forward of a PyTorch model as a trace: what every module read and gave, and what attention was asked."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..model.anatomy.trace import Arithmetic, AttentionCall, ExpertsCall, Trace
from .attention import Attention
from .mixtures import Products, dense_weights, given, n_experts_of, unfaithful
from .quantised import QuantisedLinear
from .taps import first_of

__all__ = ["TOLERANCES", "Layers", "recorded", "same_layers", "traced"]

TOLERANCES = {torch.float64: 1e-6, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""Relative: two orders of one sum; in float64 the libraries go through float32 in places."""


@torch.no_grad()
def traced(
    model: nn.Module, attention: Attention, forward: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor
) -> Trace:
    """What one forward over token ids [batch, row] shows. Hooks are gone afterwards."""
    modules = dict(model.named_modules())
    names = {id(module): path for path, module in modules.items()}
    dtype = next(model.parameters()).dtype
    trace = Trace(
        layout=(ids.shape[0], ids.shape[1]),
        numbers=Arithmetic(torch.equal, _distance, TOLERANCES[dtype]),
        lists={
            path: len(module) for path, module in modules.items() if isinstance(module, nn.ModuleList) and len(module)
        },
        linear=frozenset(
            path for path, module in modules.items() if isinstance(module, (nn.Linear, Conv1D, QuantisedLinear))
        ),
        norms=frozenset(path for path, module in modules.items() if "Norm" in type(module).__name__),
        leaves=frozenset(path for path, module in modules.items() if not any(module.children())),
    )

    trace.factors = {
        f"{path}.{i}": tuple(
            _kept(one, ids.device) for one in (*item.buffers(False), *item.parameters(False)) if one.numel() == 1
        )
        for path in trace.lists
        for i, item in enumerate(modules[path].children())
    }

    def witness(module: nn.Module, q: Any, k: Any, v: Any, out: Any, window: int | None) -> None:
        q, k, v, out = (_kept(one, ids.device) for one in (q, k, v, out))
        trace.calls.append(AttentionCall(names[id(module)], q, k, v, out, window))

    attention.witness = witness
    handles = [handle for path, module in modules.items() if path for handle in _watch(trace, path, module, ids.device)]
    # Its calls, which `twice` must not see, are made when the forward is over.
    calls = list[tuple[str, Any, int, Any, Any, Any]]()
    handles += [_watch_experts(trace, calls, path, module, ids.device) for path, module in modules.items()]
    running = list[str]()
    handles += [
        one
        for path in trace.leaves
        if type(modules[path]).forward not in (nn.Linear.forward, Conv1D.forward)
        for one in (
            modules[path].register_forward_pre_hook(lambda *_, path=path: running.append(path)),
            modules[path].register_forward_hook(lambda *_: _none(running.pop())),
        )
    ]

    def product(found: Any) -> Any:
        if running and isinstance(found, torch.Tensor):
            trace.products.setdefault(running[-1], []).append(_rows(trace, _kept(found, ids.device))[0])
        return found

    try:
        with Products(product):
            trace.rows = forward(ids).clone()
    finally:
        attention.witness = None
        for handle in handles:
            handle.remove()
    # A router may be a linear module that gives more than its product.
    trace.linear -= {path for path in trace.products if len(trace.products[path]) != 1 or path in trace.several}
    # Of mixtures in many layers, the first and the last are tried for all: each expert is a call.
    faithful = all(
        unfaithful(module, rows, dense, gave) <= TOLERANCES[dtype]
        for _, module, _, rows, dense, gave in calls[:1] + calls[1:][-1:]
    )
    for path, _, at, _, dense, _ in calls:
        trace.experts.append(ExpertsCall(path, dense.shape[1], at, _rows(trace, dense)[0], faithful))
    return trace


def _watch_experts(
    trace: Trace, calls: list[tuple[str, Any, int, Any, Any, Any]], path: str, module: nn.Module, home: torch.device
) -> Any:
    def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        found, n_experts, rows = given(args, kwargs), n_experts_of(module), args[0] if args else None
        if found is None or not n_experts or not isinstance(rows, torch.Tensor) or not isinstance(output, torch.Tensor):
            return
        if rows.ndim == 2 and output.shape == rows.shape:
            dense = dense_weights(*found, n_experts)
            calls.append((path, module, len(trace.order), _kept(rows, home), _kept(dense, home), _kept(output, home)))

    return module.register_forward_hook(after, with_kwargs=True)


def _rows(trace: Trace, value: torch.Tensor) -> tuple[torch.Tensor, bool]:
    """[batch, row, …], and whether the rows stood one behind the other."""
    batch, rows = trace.layout
    flat = value.ndim == 2 and value.shape[0] == batch * rows
    return (value.unflatten(0, trace.layout) if flat else value), flat


def _none(_: object) -> None:
    """Of a hook, which must not give what it does."""


def _watch(trace: Trace, path: str, module: nn.Module, home: torch.device) -> tuple[Any, ...]:
    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read = args[0] if args else kwargs.get("hidden_states")
        if isinstance(read, torch.Tensor):
            value, flat = _rows(trace, _kept(read, home))
            trace.note(path, "input", value, flat=flat)

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        gave = first_of(output)
        if gave is not output:
            trace.several.add(path)
        if isinstance(gave, torch.Tensor):
            value, flat = _rows(trace, _kept(gave, home))
            trace.note(path, "output", value, flat=flat)

    return module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after)


def _kept(tensor: torch.Tensor, home: torch.device) -> torch.Tensor:
    """A copy, on the one device where all are compared."""
    return tensor.detach().to(home, copy=True)


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    a, b = a.double(), b.double()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-30))


# ---- two ways to compute one model, layer by layer: in 16 bits, what layers add up differs by more than a layer ----

Layers = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""Path of an item of a list of modules → what it read and what it gave, [batch, row, d_model] each."""


@contextmanager
def recorded(model: nn.Module) -> Generator[Layers]:
    """Inside, what the layers of one forward read and give."""
    layers: Layers = {}

    def note(path: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        read, gave = args[0] if args else kwargs.get("hidden_states"), first_of(output)
        if isinstance(read, torch.Tensor) and isinstance(gave, torch.Tensor) and read.ndim == 3:
            layers[path] = (read.clone(), gave.clone())

    handles = [
        item.register_forward_hook(
            lambda _, args, kwargs, output, path=path: note(path, args, kwargs, output), with_kwargs=True
        )
        for path, item in _items(model)
    ]
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def same_layers(model: nn.Module, layers: Layers, forward: Callable[[], Any], tolerance: float) -> bool:
    """Whether each layer, given what it read when `layers` were recorded, gives what it gave then.

    `tolerance`: of what a layer adds to a row, as a share of the most that it adds to one of the row's units.
    """
    agrees = dict.fromkeys(layers, False)

    def give(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        read = args[0] if args else kwargs.get("hidden_states")
        if path not in layers or not isinstance(read, torch.Tensor) or read.shape != layers[path][0].shape:
            return None
        # A copy, as a layer may write into what it reads.
        new = layers[path][0].clone()
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    def compare(path: str, output: Any) -> None:
        if path in layers:
            agrees[path] = _agree(first_of(output), *layers[path], tolerance)

    handles = [
        handle
        for path, item in _items(model)
        for handle in (
            item.register_forward_pre_hook(
                lambda _, args, kwargs, path=path: give(path, args, kwargs), with_kwargs=True
            ),
            item.register_forward_hook(lambda _, __, output, path=path: compare(path, output)),
        )
    ]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return bool(agrees) and all(agrees.values())


def _agree(gave: Any, read: torch.Tensor, before: torch.Tensor, tolerance: float) -> bool:
    """Both roundings of the sum apart: a stream may hold values beside which all that a layer adds is small."""
    if not isinstance(gave, torch.Tensor) or gave.shape != before.shape:
        return False
    rounding = 4 * torch.finfo(before.dtype).eps
    gave, read, before = gave.double(), read.double(), before.double()
    added = before - read if read.shape == before.shape else before
    bound = tolerance * added.abs().amax(-1, keepdim=True) + rounding * torch.maximum(before.abs(), gave.abs())
    return bool(((gave - before).abs() <= bound).all())


def _items(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [
        (f"{path}.{i}", item)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        for i, item in enumerate(module)
    ]
