"""Module hooks that carry tensors to the executor, attached only for the sites that the coming forward asks for."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from ...protos.errors import InvalidArgument
from ...protos.sites import Site
from ..executor import Executor
from ..sites import ATTENTION_TAPS, Family, Tap

__all__ = ["Taps"]


class Taps:
    """The hooks on one model's modules."""

    def __init__(self, model: nn.Module, family: Family | None, executor: Executor, n_heads: int) -> None:
        self.model, self.family, self.executor, self.n_heads = model, family, executor, n_heads
        self.modules = dict(model.named_modules())
        self.sites: set[Site] = set()
        self.handles: list[RemovableHandle] = []

    def check(self, site: Site) -> None:
        """Raise InvalidArgument for a raw site whose module does not exist."""
        if site.name == "module" and site.path not in self.modules:
            near = [name for name in self.modules if name.endswith(str(site.path).rsplit(".", 1)[-1])][:4]
            raise InvalidArgument(
                f"{site}: the model has no module {site.path!r}; for example {near or list(self.modules)[:4]}"
            )

    def attach(self, sites: set[Site]) -> None:
        """Make exactly these sites reach the executor."""
        if sites == self.sites:
            return
        wanted: dict[tuple[str, str], list[tuple[Site, Tap]]] = {}
        for site in sorted(sites, key=_forward_order):
            if site.name != "logits" and site.name not in ATTENTION_TAPS:
                path, tap = self._locate(site)
                wanted.setdefault((path, tap.side), []).append((site, tap))
        for handle in self.handles:
            handle.remove()
        self.sites = sites
        self.handles = [self._hook(path, side, found) for (path, side), found in wanted.items()]

    def _locate(self, site: Site) -> tuple[str, Tap]:
        if site.name == "module":
            assert site.path is not None
            return site.path, Tap(site.path, "input" if site.side == "input" else "output")
        assert self.family is not None
        if site.name == "embed":
            return self.family.layer_path("torch", 0), Tap("", "input")
        if site.name == "final_norm":
            return self.family.norm_path("torch"), Tap("", "output")
        assert site.layer is not None
        tap = self.family.taps[site.name]
        base = self.family.layer_path("torch", site.layer)
        return f"{base}.{tap.path}" if tap.path else base, tap

    def _hook(self, path: str, side: str, found: list[tuple[Site, Tap]]) -> RemovableHandle:
        module = self.modules[path]
        if side == "input":

            def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
                if args:
                    return (self._tap(found, args[0], None), *args[1:]), kwargs
                value = self._tap(found, kwargs.get("hidden_states"), None)
                return args, {**kwargs, "hidden_states": value} if "hidden_states" in kwargs else kwargs

            return module.register_forward_pre_hook(before, with_kwargs=True)

        if found[0][1].router:
            return module.register_forward_hook(lambda router, _, output: self._tap_router(found, router, output))

        def after(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            if isinstance(output, tuple):
                return (self._tap(found, output[0], None), *output[1:])
            return self._tap(found, output, args[0] if args else None)

        return module.register_forward_hook(after)

    def _tap_router(self, found: list[tuple[Site, Tap]], router: Any, output: Any) -> Any:
        """A router gives (logits, chosen weights, chosen experts), each [batch · row, …]; the last two follow."""
        logits, weights, experts = output
        for site, _ in found:
            if site.name == "router_logits":
                rows = logits.unflatten(0, self.executor.layout)
                new = self.executor.tap(site, rows)
                if new is not rows:
                    logits = new.flatten(0, 1)
                    top, experts = torch.topk(logits, router.top_k, dim=-1)
                    weights = torch.softmax(top, dim=-1, dtype=top.dtype)
            else:
                dense = torch.zeros_like(logits).scatter(-1, experts, weights)
                self.executor.tap(site, dense.unflatten(0, self.executor.layout))
        return logits, weights, experts

    def _tap(self, found: list[tuple[Site, Tap]], value: Any, linear_input: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.ndim < 3 or tuple(value.shape[:2]) != self.executor.layout:
            self.executor.fail_wanting(
                [site for site, _ in found], "its tensor has no rows that can be matched to tokens"
            )
            return value
        for site, tap in found:
            value = self._tap_one(site, tap, value, linear_input if tap.linear else None)
        return value

    def _tap_one(self, site: Site, tap: Tap, value: torch.Tensor, linear_input: Any) -> torch.Tensor:
        tap_value, view = self.executor.tap, value
        if site.name == "z":
            view = value.unflatten(-1, (self.n_heads, -1))
            new = tap_value(site, view)
            return value if new is view else new.flatten(-2)
        if tap.part is not None:
            index, n = tap.part
            width = value.shape[-1] // n
            view = value[..., index * width : (index + 1) * width]
            new = tap_value(site, view)
            if new is view:
                return value
            value = value.clone()
            value[..., index * width : (index + 1) * width] = new
            return value
        return tap_value(site, value, linear_input=linear_input, in_place=tap.in_place)


def _forward_order(site: Site) -> tuple[int, int]:
    return site.order or (0, 0)
