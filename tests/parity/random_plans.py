"""Random plans that a model accepts: raw and named sites, names of one tensor, every edit, conditions, reductions.

Used by tests/parity/test_neighbours.py and by benchmarks/neighbours.py, which tries thousands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from probewire.backends.hooks.base import Backend
from probewire.backends.hooks.plan import bind
from probewire.backends.saes import Sae, UserAssets
from probewire.protos.edits import (
    Add,
    Affine,
    Clamp,
    Constant,
    Edit,
    Inline,
    LowRank,
    Noise,
    ProjectOut,
    Replace,
    Scale,
    Zeros,
)
from probewire.protos.errors import InvalidArgument
from probewire.protos.latents import LatentChange, Latents, ReadLatents
from probewire.protos.sites import ATTENTION_SITES, HEAD_SITES, Site
from probewire.protos.spec import (
    AllOf,
    AnyOf,
    Capture,
    Condition,
    Gather,
    Hook,
    Last,
    Mean,
    NextLogprob,
    Norm,
    Plan,
    Project,
    Reduction,
    Span,
    TopK,
    When,
    Where,
)
from probewire.protos.tensors import Tensor

__all__ = ["RandomPlans"]

Rng = np.random.Generator

SAE_SITE, D_SAE = Site("resid_post", 1), 40


class RandomPlans:
    """Draws plans for one model. The same generator gives the same plans."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.raw = [
            f"module:{path}:{side}"
            for path, side in sorted(backend.points.seen)
            if path and not backend.points.reason_to_refuse(Site.parse(f"module:{path}:{side}"))
        ]
        self.saes = {"sae": _sae(backend.info.d_model)}
        self.layer_raw = {site: self._names_of(Site.parse(site)) for site in self.raw}

    def _names_of(self, raw: Site) -> list[str]:
        """Named sites at the same module's tensor."""
        names: list[str] = []
        point = self.backend.points.spot(raw).point
        for offered in self.backend.info.sites:
            for layer in offered.layers or (None,):
                found = self.backend.points.spot(Site(offered.name, layer)).point
                if (found.path, found.side) == (point.path, point.side):
                    names.append(str(Site(offered.name, layer)))
        return names

    def plan(self, rng: Rng, tokens: list[int], mode: str, n_rows: int) -> Plan:
        """One to four hooks, then the logits; half of the plans have two names of one tensor."""
        sites = [self._site(rng, mode) for _ in range(int(rng.integers(1, 4)))]
        aliased = [site for site, names in self.layer_raw.items() if names]
        if rng.random() < 0.5 and aliased:
            raw = str(rng.choice(aliased))
            sites += [raw, *self._offered(self.layer_raw[raw], mode)[:1]]
        hooks: list[Hook] = []
        if rng.random() < 0.3:
            changes = tuple(LatentChange(int(i), add=0.7) for i in rng.choice(D_SAE, size=3, replace=False))
            edit = Latents("sae", changes) if rng.random() < 0.6 else None
            hooks.append(Hook(str(SAE_SITE), edit, Capture(reduce=ReadLatents("sae", ids=(0, 5, 9)))))
        while sites:
            hook = self._hook(rng, str(sites[0]), len(tokens), mode, n_rows)
            if self._accepted(Plan((*hooks, hook)), tokens, mode, n_rows):
                hooks.append(hook)
            sites.pop(0)
        return Plan((*hooks, Hook("logits", capture=Capture())))

    def _accepted(self, plan: Plan, tokens: list[int], mode: str, n_rows: int) -> bool:
        kind: Any = mode
        try:
            bind(
                plan,
                self.backend,
                mode=kind,
                input_name="input",
                tokens=tokens,
                prompt_length=len(tokens),
                n_rows=n_rows,
                assets=UserAssets({}, self.saes),
            )
        except InvalidArgument:
            return False
        return True

    def _offered(self, names: list[str], mode: str) -> list[str]:
        infos = [(name, self.backend.info.site(Site.parse(name).name)) for name in names]
        return [name for name, info in infos if info is not None and (info.generate or mode == "run")]

    def _site(self, rng: Rng, mode: str) -> str:
        if rng.random() < 0.35:
            return str(rng.choice(self.raw))
        offered = [s for s in self.backend.info.sites if s.generate or mode == "run"]
        info = offered[int(rng.integers(len(offered)))]
        if info.layers is None:
            return info.name
        if rng.random() < 0.15 and info.name not in ATTENTION_SITES:
            return f"{info.name}.*"
        return f"{info.name}.{rng.choice(info.layers)}"

    def _hook(self, rng: Rng, name: str, n_prompt: int, mode: str, n_rows: int) -> Hook:
        site = Site.parse(name.replace("*", "0"))
        info = self.backend.info.site(site.name)
        widths = self.backend.points.tail(site) if info is None else info.widths
        where = self._where(rng, site, name, widths, n_prompt, mode, n_rows)
        edits = self._edits(rng, name, site, widths, where, n_prompt, n_rows)
        edit = edits[int(rng.integers(len(edits)))]() if edits and rng.random() < 0.75 else None
        capture = self._capture(rng, site, widths) if edit is None or rng.random() < 0.6 else None
        return Hook(name, edit, capture, where)

    def _where(
        self, rng: Rng, site: Site, name: str, widths: tuple[int, ...], n_prompt: int, mode: str, n_rows: int
    ) -> Where:
        kind = rng.choice(["all", "positions", "span", "phase", "tokens"])
        when = self._when(rng, site, widths) if rng.random() < 0.25 and "*" not in name else None
        if kind == "positions":
            chosen = rng.choice(n_rows, size=min(3, n_rows), replace=False)
            return Where(positions=tuple(int(p) for p in chosen), when=when)
        if kind == "span":
            start = int(rng.integers(0, n_prompt))
            return Where(spans=(Span(start, int(rng.integers(start + 1, n_rows + 1))),), when=when)
        if kind == "phase" and mode == "generate" and (when is None or not when.latched):
            return Where(phase=("prompt", "generated")[int(rng.integers(2))], when=when)
        if kind == "tokens":
            return Where(token_ids=tuple(int(t) for t in rng.choice(261, size=40, replace=False)), when=when)
        return Where(when=when)

    def _when(self, rng: Rng, site: Site, widths: tuple[int, ...]) -> When | None:
        if site.name in ATTENTION_SITES:
            return None
        if rng.random() < 0.6:
            return self._condition(rng, site, widths)
        several = tuple(self._condition(rng, site, widths) for _ in range(2))
        return AllOf(several) if rng.random() < 0.5 else AnyOf(several)

    def _condition(self, rng: Rng, site: Site, widths: tuple[int, ...]) -> Condition:
        head = int(rng.integers(widths[0])) if site.name in HEAD_SITES else None
        latch = ("last", "mean", None, None)[int(rng.integers(4))]
        if rng.random() < 0.5:
            return Condition(0.05, unit=int(rng.integers(widths[-1])), head=head, latch=latch)
        cosine = bool(rng.random() < 0.5)
        return Condition(0.05, direction=_vector(rng, widths[-1]), head=head, op="lt", latch=latch, normalise=cosine)

    def _edits(
        self, rng: Rng, name: str, site: Site, widths: tuple[int, ...], where: Where, n_prompt: int, n_rows: int
    ) -> list[Callable[[], Edit]]:
        info = self.backend.info.site(site.name)
        if site.name == "logits" or (info is not None and not info.edits):
            return []
        width = widths[-1]
        if site.name in ATTENTION_SITES:
            keys = (1,)
            return [
                lambda: Scale(0.5, units=keys),
                lambda: Add(_vector(rng, 1), alpha=0.3, units=keys),
                lambda: Scale(1.3, heads=(int(rng.integers(widths[0])),)),
            ]
        units = (
            tuple(int(u) for u in rng.choice(width, size=min(5, width), replace=False)) if rng.random() < 0.4 else None
        )
        heads = (int(rng.integers(widths[0])),) if site.name in HEAD_SITES and rng.random() < 0.5 else None
        n = width if units is None else len(units)
        part: dict[str, Any] = {"units": units, "heads": heads}
        positions = where.positions
        found: list[Callable[[], Edit]] = [
            lambda: Add(_vector(rng, n), alpha=float(rng.normal()), **part),
            lambda: Add(_vector(rng, n), alpha=0.3, norm_match=True, **part),
            lambda: Scale(float(rng.uniform(-1.5, 1.5)), **part),
            lambda: Replace(Zeros(), **part),
            lambda: Replace(Constant(_vector(rng, n)), **part),
            lambda: ProjectOut(_vector(rng, n, rows=min(2, n)), **part),
            lambda: Clamp(None, -0.2, 0.3, **part),
            lambda: Clamp(_vector(rng, n, rows=1), min=-0.1, **part),
            lambda: Noise(0.3, int(rng.integers(1 << 30)), **part),
            lambda: Affine(_vector(rng, 2, rows=n), _vector(rng, n, rows=2), _vector(rng, 2), 0.1, **part),
        ]
        if positions is not None and units is None and heads is None:
            rows = (len(positions), *widths)
            found.append(lambda: Replace(Inline(Tensor.of(rng.normal(size=rows).astype(np.float32)))))
        spot = self.backend.points.spot(site)
        if spot.point.linear and site.name != "module" and spot.view.whole:
            d_in = self.backend.points.read_width(site)
            found.append(lambda: LowRank(_vector(rng, 2, rows=d_in), _vector(rng, width, rows=2), 0.3))
        return found

    def _capture(self, rng: Rng, site: Site, widths: tuple[int, ...]) -> Capture:
        before = bool(rng.random() < 0.3)
        if site.name in ATTENTION_SITES:
            return Capture(before=before)
        width = widths[-1]
        reductions: list[Reduction | None] = [
            None,
            None,
            Last(),
            Mean(),
            Norm(),
            TopK(min(3, width)),
            Project(_vector(rng, width, rows=2)),
            Gather((0, width - 1) if width > 1 else (0,)),
        ]
        if site.name == "logits":
            return Capture(reduce=NextLogprob()) if rng.random() < 0.5 else Capture(before=before)
        return Capture(before=before, reduce=reductions[int(rng.integers(len(reductions)))])


def _sae(d_model: int) -> Sae:
    rng = np.random.default_rng(3)
    arrays = {"W_enc": (d_model, D_SAE), "W_dec": (D_SAE, d_model), "b_dec": (d_model,), "b_enc": (D_SAE,)}
    drawn = {name: (rng.normal(size=shape) / 8).astype(np.float32) for name, shape in arrays.items()}
    return Sae("sae", SAE_SITE, "standard", d_model, D_SAE, 0, "float32", True, "none", False, drawn)


def _vector(rng: Rng, width: int, rows: int | None = None) -> Tensor:
    shape = (width,) if rows is None else (rows, width)
    return Tensor.of((0.5 * rng.normal(size=shape)).astype(np.float32))
