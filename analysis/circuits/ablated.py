"""Running circuits: the model with every unit outside a circuit replaced, and what that leaves of the metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Constant, FromInput, Hook, Inline, Replace, Zeros, hook
from ...clients.requests.hooks import Options
from ...clients.requests.prompts import Prompts
from ...protos.edits import Source
from ...protos.errors import InvalidArgument
from ...protos.metrics import Metric
from ...protos.sites import HEAD_SITES, Site
from ...protos.spec import MAX_HOOKS
from ...protos.variants.use import VariantUse
from ..ablation.reference import Reference, measure
from ..attribution.pairs import Pair, make_pairs
from ..attribution.taylor import patterns
from .joined import AnySpace, JoinedSpace
from .space import Mask, Scores, Space

__all__ = [
    "ABLATIONS",
    "Ablated",
    "Ablation",
    "Judged",
    "MakeSource",
    "Ranked",
    "ablated",
    "ablation_hooks",
    "mean_source",
]

Ablation = Literal["patch", "mean", "zero"]
ABLATIONS: tuple[Ablation, ...] = ("patch", "mean", "zero")
"""patch: the corrupt prompt's values. mean: means over reference prompts. zero."""
Floats = NDArray[np.float64]
Outside = tuple[int, ...] | None
"""Parts of a row that are replaced; None: the whole row."""


class Ranked(Protocol):
    """What a circuit's members are chosen from: a Space, or an EdgeSpace."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of scores and masks."""
        ...

    @property
    def size(self) -> int:
        """How many members there could be."""
        ...

    def checked(self, mask: Any) -> Mask:
        """A mask of the right shape."""
        ...

    def scores(self, scores: Scores) -> Floats:
        """Scores as a plain array."""
        ...

    def top(self, scores: Scores, n: int, *, absolute: bool = False) -> Mask:
        """The `n` best."""
        ...


class Judged(Protocol):
    """What faithfulness is measured on: `Ablated`, or the EdgeModel of edge_circuits.py."""

    @property
    def space(self) -> Ranked:
        """What circuits are chosen from."""
        ...

    @property
    def ablation(self) -> str:
        """What stands in place of all outside a circuit."""
        ...

    @property
    def empty(self) -> float:
        """F(∅)"""
        ...

    @property
    def full(self) -> float:
        """F(M)"""
        ...

    def means(self, masks: Sequence[Mask]) -> Floats:
        """[circuit]: F, the mean over pairs."""
        ...


@dataclass(eq=False, slots=True)
class Ablated:
    """One metric on some pairs of prompts, under any circuit of a space. Made by `ablated`."""

    client: Client
    pairs: tuple[Pair, ...]
    space: AnySpace
    ablation: Ablation
    reference: Reference | None
    model: str
    progress: bool
    hooks: tuple[Hook, ...] = ()
    """What changes the model under all circuits, before they ablate; at both prompts of a pair."""
    variants: tuple[VariantUse, ...] = ()
    _ends: Floats | None = field(default=None)

    def values(self, masks: Sequence[Mask]) -> Floats:
        """[circuit, pair]: the metric on each clean prompt with all outside each circuit replaced. One sweep a pair."""
        found = [self._of_pair(pair, masks) for pair in self.pairs]
        return np.stack(found, axis=1)

    def means(self, masks: Sequence[Mask]) -> Floats:
        """[circuit]: F, the mean over pairs."""
        return self.values(masks).mean(axis=1)

    @property
    def empty(self) -> float:
        """F(∅): every unit of the space replaced."""
        return float(self._measured_ends()[0])

    @property
    def full(self) -> float:
        """F(M): nothing replaced."""
        return float(self._measured_ends()[1])

    def _measured_ends(self) -> Floats:
        if self._ends is None:
            none = np.zeros(self.space.shape, dtype=bool)
            self._ends = self.means([none, ~none])
        return self._ends

    def _of_pair(self, pair: Pair, masks: Sequence[Mask]) -> Floats:
        plans = [ablation_hooks(self.space, mask, self._source(pair)) for mask in masks]
        inputs = [pair.input("clean"), pair.input("corrupt", source_only=True), *pair.baselines]
        options: dict[str, Any] = {"hooks": list(self.hooks), "progress": self.progress, "model": self.model}
        if self.variants:
            options["variant"] = list(self.variants)
        sweep = self.client.sweep(inputs, [pair.target("clean")], plans, **options)
        return np.asarray(sweep.array(pair.name("clean")).values, dtype=np.float64)

    def _source(self, pair: Pair) -> MakeSource | Source:
        if self.ablation == "patch":
            return FromInput(pair.name("corrupt"))
        if self.ablation == "zero":
            return Zeros()
        assert self.reference is not None
        return mean_source(self.reference, len(pair))


MakeSource = Callable[[str, tuple[int, ...] | None, Outside], Source]
"""(site, positions, parts) → what is put there, for sources that differ by site."""


def ablated(
    client: Client,
    clean: Prompts,
    corrupt: Prompts,
    metric: Metric | Sequence[Metric],
    space: AnySpace,
    *,
    ablation: Ablation = "patch",
    reference: Reference | Prompts | None = None,
    progress: bool = True,
    hooks: Sequence[Hook] = (),
    variants: Sequence[VariantUse] = (),
    model: str = "",
) -> Ablated:
    """Circuits of a space, run on the clean prompts. `ablation` "patch" takes the corrupt prompt's values.

    "mean" takes those of `reference`: prompts, or a Reference already measured (analysis/ablation); default the corrupt
    prompts. `hooks` and `variants` change the model under every circuit; with "mean" a measured Reference goes with them, as
    what is measured here is of the base. Raises InvalidArgument for prompts that do not pair, and for ones of other lengths
    than the space's.
    """
    if ablation not in ABLATIONS:
        raise InvalidArgument(f"ablation {ablation!r}; allowed: {', '.join(ABLATIONS)}")
    if reference is not None and ablation != "mean":
        raise InvalidArgument(f"a reference is for mean ablation, but ablation is {ablation!r}")
    if ablation == "mean" and (hooks or variants) and not isinstance(reference, Reference):
        raise InvalidArgument(
            "the means of a changed model are not those of the base; give a Reference measured on it, or patch"
        )
    pairs = make_pairs(client, clean, corrupt, metric, model=model)
    wrong = [len(pair) for pair in pairs if space.n_tokens not in (None, len(pair))]
    if wrong:
        raise InvalidArgument(
            f"the space has units at {space.n_tokens} positions, and a prompt has {wrong[0]} tokens; take prompts of that "
            "length, or a space without positions"
        )
    if ablation == "mean" and not isinstance(reference, Reference):
        prompts = corrupt if reference is None else reference
        reference = measure(
            client, prompts, patterns(space.sites), positionwise=space.n_tokens is not None, model=model
        )
    return Ablated(
        client,
        pairs,
        space,
        ablation,
        reference if isinstance(reference, Reference) else None,
        model,
        progress,
        tuple(hooks),
        tuple(variants),
    )


def ablation_hooks(space: AnySpace, mask: Mask, source: MakeSource | Source) -> list[Hook]:
    """Hooks that replace every unit outside a mask. Raises InvalidArgument when they are more than a plan may hold.

    Positions of a layer that lose the same parts share a hook, and so do layers that lose whole rows.
    """
    parts = space.split(mask) if isinstance(space, JoinedSpace) else [(space, mask)]
    hooks = [one for part, kept in parts for one in _hooks_of(part, kept, source)]
    if len(hooks) > MAX_HOOKS:
        raise InvalidArgument(
            f"this circuit needs {len(hooks)} hooks (one for each layer and position that loses other units), and a plan "
            f"takes {MAX_HOOKS}; use a shorter prompt, fewer sites, or units that are not told apart by position"
        )
    return hooks


def _hooks_of(space: Space, mask: Mask, source: MakeSource | Source) -> list[Hook]:
    kept = space.cells(mask)
    groups: dict[tuple[tuple[int, ...] | None, Outside], list[str]] = {}
    for index, site in enumerate(space.sites):
        for positions, outside in _groups(space, kept[index]):
            groups.setdefault((positions, outside), []).append(site)
    hooks: list[Hook] = []
    for (positions, outside), sites in groups.items():
        options: Options = {} if positions is None else {"positions": positions}
        part: dict[str, Any] = {} if outside is None else {f"{space.part}s": outside}
        if callable(source):
            hooks += [hook(s, Replace(source(s, positions, outside), **part), **options) for s in sites]
        else:
            hooks += [hook(name, Replace(source, **part), **options) for name in patterns(sites)]
    return hooks


def _groups(space: Space, kept: Mask) -> list[tuple[tuple[int, ...] | None, Outside]]:
    """(positions, parts) to replace at one site, [position, part] given; positions None: all of them."""
    found: dict[bytes, list[int]] = {}
    for position, row in enumerate(kept):
        if not row.all():
            found.setdefault(row.tobytes(), []).append(position)
    groups: list[tuple[tuple[int, ...] | None, Outside]] = []
    for positions in found.values():
        row = kept[positions[0]]
        outside = tuple(np.flatnonzero(~row).tolist()) if row.any() else None
        everywhere = len(positions) == len(kept)
        groups.append((None if everywhere else tuple(positions), outside))
    return groups


def mean_source(reference: Reference, n_tokens: int) -> MakeSource:
    """Means of a reference as sources, for prompts of so many tokens (where the reference tells positions apart)."""

    def make(site: str, positions: tuple[int, ...] | None, outside: Outside) -> Source:
        mean = reference.mean(site)
        if outside is not None:
            headed = Site.parse(site).name in HEAD_SITES
            mean = mean[..., list(outside), :] if headed else mean[..., list(outside)]
        if not reference.positionwise:
            return Constant(mean)  # pyright: ignore[reportArgumentType] - takes anything array-like
        where = list(range(n_tokens)) if positions is None else list(positions)
        if len(mean) <= max(where):
            raise InvalidArgument(f"the reference has means at {len(mean)} positions, and the prompt is longer")
        return Inline(mean[where])  # pyright: ignore[reportArgumentType]

    return make
