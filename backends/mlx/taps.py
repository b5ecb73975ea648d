"""Taps in mlx-lm's modules that carry tensors to the executor, there only for the sites that the coming forward asks for.

MLX looks `__call__` up on the type, so a tapped module's class is swapped for a subclass of its own, and put back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx

from ...protos.errors import InvalidArgument
from ...protos.sites import Site
from ..executor import Executor
from ..sites import ATTENTION_TAPS, Family, Tap

__all__ = ["Taps"]

_PROBE_LENGTHS = (37, 41)
"""Long enough for mixtures of experts to sort their rows."""


class _Point:
    """One module that can be tapped."""

    def __init__(self, module: Any) -> None:
        self.module, self.own_class = module, type(module)
        self.tapped_class: type | None = None
        self.inputs: list[tuple[Site, Tap]] = []
        self.outputs: list[tuple[Site, Tap]] = []


class Taps:
    """The taps on one model's modules."""

    def __init__(
        self,
        model: Any,
        family: Family | None,
        executor: Executor,
        n_heads: int,
        forward: Callable[[mx.array], mx.array],
    ) -> None:
        self.model, self.family, self.executor, self.n_heads = model, family, executor, n_heads
        self.forward = forward
        """A forward over token ids [batch, row], whose graph shows what shapes a module sees."""
        self.modules: dict[str, Any] = dict(model.named_modules())
        self.points: dict[str, _Point] = {}
        self.attached: list[_Point] = []
        self.sites: set[Site] = set()
        self.refused: dict[Site, str] = {}
        """Raw sites looked at → why they have no rows that can be matched to tokens, or empty."""

    def check(self, site: Site) -> None:
        """Raise InvalidArgument for a raw site whose module does not exist or whose rows are not the tokens'."""
        if site.name != "module":
            return
        if self._own_path(str(site.path)) not in self.modules:
            near = [name for name in self.modules if name.endswith(str(site.path).rsplit(".", 1)[-1])][:4]
            raise InvalidArgument(
                f"{site}: the model has no module {site.path!r}; for example {near or list(self.modules)[:4]}"
            )
        if site not in self.refused:
            self.refused[site] = self._reason_to_refuse(site)
        if self.refused[site]:
            raise InvalidArgument(f"{site}: {self.refused[site]}")

    def _reason_to_refuse(self, site: Site) -> str:
        """Look at the tensor's shape for two lengths that no other axis has; nothing is computed."""
        module, seen = self.modules[self._own_path(str(site.path))], list[Any]()
        current = type(module)

        def call(this: Any, *args: Any, **kwargs: Any) -> Any:
            output = current.__call__(this, *args, **kwargs)
            first = output[0] if isinstance(output, tuple) else output
            seen.append(first if site.side == "output" else args[0] if args else None)
            return output

        for length in _PROBE_LENGTHS:
            seen.clear()
            self.executor.begin([], (2, length))
            module.__class__ = type(current.__name__, (current,), {"__call__": call})
            try:
                self.forward(mx.zeros((2, length), mx.int32))
            finally:
                module.__class__ = current
            if len(seen) != 1:
                return f"the forward pass calls this module {len(seen)} times, not once"
            if not _has_rows(seen[0], (2, length)):
                return "its tensor has no rows that can be matched to tokens"
        return ""

    def attach(self, sites: set[Site]) -> None:
        """Make exactly these sites reach the executor."""
        if sites == self.sites:
            return
        for point in self.attached:
            point.module.__class__ = point.own_class
            point.inputs, point.outputs = [], []
        self.sites, self.attached = sites, []
        for site in sorted(sites, key=_forward_order):
            if site.name != "logits" and site.name not in ATTENTION_TAPS:
                self._attach_one(site)

    def _attach_one(self, site: Site) -> None:
        path, tap = self._locate(site)
        if path not in self.points:
            self.points[path] = _Point(self.modules[path])
        point = self.points[path]
        (point.inputs if tap.side == "input" else point.outputs).append((site, tap))
        if point.tapped_class is None:
            point.tapped_class = self._tapped_class(point)
        point.module.__class__ = point.tapped_class
        self.attached.append(point)

    def _locate(self, site: Site) -> tuple[str, Tap]:
        if site.name == "module":
            path = self._own_path(str(site.path))
            return path, Tap(path, "input" if site.side == "input" else "output")
        assert self.family is not None
        if site.name == "embed":
            return self.family.layer_path("mlx", 0), Tap("", "input")
        if site.name == "final_norm":
            return self.family.norm_path("mlx"), Tap("", "output")
        assert site.layer is not None
        tap = self.family.taps[site.name]
        base = self.family.layer_path("mlx", site.layer)
        return f"{base}.{tap.path}" if tap.path else base, tap

    def _own_path(self, path: str) -> str:
        """mlx-lm's name of a module that the checkpoint may name otherwise (gpt2: transformer.h, here model.h)."""
        if path in self.modules or self.family is None:
            return path
        first, _, rest = path.partition(".")
        return f"{self.family.body['mlx']}.{rest}" if first == self.family.body["torch"] else path

    def _tapped_class(self, point: _Point) -> type:
        stock = point.own_class.__call__

        def call(module: Any, *args: Any, **kwargs: Any) -> Any:
            if point.inputs:
                first = self._tap(point.inputs, args[0] if args else None, None)
                args = (first, *args[1:]) if args else args
            output = stock(module, *args, **kwargs)
            if not point.outputs:
                return output
            if isinstance(output, tuple):
                return (self._tap(point.outputs, output[0], None), *output[1:])
            return self._tap(point.outputs, output, args[0] if args else None)

        return type(point.own_class.__name__, (point.own_class,), {"__call__": call})

    def _tap(self, found: list[tuple[Site, Tap]], value: Any, linear_input: Any) -> Any:
        if not _has_rows(value, self.executor.layout):
            self.executor.fail_wanting(
                [site for site, _ in found], "its tensor has no rows that can be matched to tokens"
            )
            return value
        for site, tap in found:
            value = self._tap_one(site, tap, value, linear_input if tap.linear else None)
        return value

    def _tap_one(self, site: Site, tap: Tap, value: mx.array, linear_input: Any) -> mx.array:
        tap_value, view = self.executor.tap, value
        if site.name == "expert_weights":
            tap_value(site, _dense_weights(value, self.model.args.num_experts_per_tok))
            return value
        if site.name == "z":
            view = mx.unflatten(value, -1, (self.n_heads, -1))
            new = tap_value(site, view)
            return value if new is view else new.flatten(-2)
        if tap.part is not None:
            index, n = tap.part
            width = value.shape[-1] // n
            view = value[..., index * width : (index + 1) * width]
            new = tap_value(site, view)
            if new is view:
                return value
            value = mx.array(value)
            value[..., index * width : (index + 1) * width] = new
            return value
        return tap_value(site, value, linear_input=linear_input, in_place=tap.in_place)


def _has_rows(value: Any, layout: tuple[int, int]) -> bool:
    return isinstance(value, mx.array) and value.ndim >= 3 and value.shape[:2] == layout


def _dense_weights(logits: mx.array, n_chosen: int) -> mx.array:
    """What mlx-lm's router makes of its logits, 0 for the experts that were not chosen."""
    chosen = mx.argpartition(logits, kth=-n_chosen, axis=-1)[..., -n_chosen:]
    weights = mx.softmax(mx.take_along_axis(logits, chosen, axis=-1), axis=-1, precise=True)
    return mx.put_along_axis(mx.zeros_like(logits), chosen, weights, axis=-1)


def _forward_order(site: Site) -> tuple[int, int]:
    return site.order or (0, 0)
