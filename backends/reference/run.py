"""A run under a plan: the forward pass, with every hook of one input applied where it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...protos.edits import Edit, FromInput, Inline, Replace, Stored
from ...protos.errors import InvalidArgument, NotFound
from ...protos.sites import ATTENTION_SITES, Site, SitePattern
from ...protos.spec import AnyOf, Capture, Condition, Hook, Plan
from ...protos.tensors import Array
from ..saes.sae import Sae
from .attention import visible_keys
from .edits import Around, edit_rows
from .model import ReferenceModel
from .reductions import Captured, captured_rows
from .rows import chosen_positions, holds
from .sources import given_rows, input_rows, named_positions, rows_first, with_keys

__all__ = ["ReferenceResult", "run"]


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceResult:
    """What a run gives back."""

    logits: Array
    """[pos, vocab], after every edit."""
    captures: dict[tuple[int, str, str], Captured]
    """(hook's index in the plan, site, part) → rows; the part is "" but for reductions that send several."""


def run(
    model: ReferenceModel,
    token_ids: Sequence[int],
    plan: Plan,
    *,
    prompt_length: int | None = None,
    input_name: str = "",
    others: Mapping[str, Sequence[int]] | None = None,
    stored: Mapping[str, Array] | None = None,
    saes: Mapping[str, Sae] | None = None,
) -> ReferenceResult:
    """Run tokens from position 0; those from `prompt_length` on (None: none) count as generated.

    `others` are the request's other inputs by name, for FromInput; `stored` are captures by id, `saes` by name. Raises
    InvalidArgument for a plan that has no meaning on this model and these inputs.
    """
    request = _Request(model, plan, {**(others or {}), input_name: token_ids}, stored or {}, saes or {})
    n = len(token_ids)
    prompt_length = n if prompt_length is None else prompt_length
    if not 1 <= prompt_length <= n:
        raise InvalidArgument(f"prompt_length {prompt_length} is outside 1 … {n}")
    one = _Input(request, input_name, prompt_length)
    return ReferenceResult(one.forward(), one.captures)


@dataclass(eq=False, slots=True)
class _Request:
    """What the inputs of a request share."""

    model: ReferenceModel
    plan: Plan
    inputs: Mapping[str, Sequence[int]]
    stored: Mapping[str, Array]
    saes: Mapping[str, Sae]
    finals: dict[str, dict[Site, Array]] = field(default_factory=dict[str, dict[Site, Array]])
    """Input → its value at each site after all edits there, once it has run as a source."""
    running: list[str] = field(default_factory=list[str])

    def final(self, name: str, site: Site) -> Array:
        """Another input's value at a site; that input runs first, whole, with the hooks that apply to it."""
        if name not in self.inputs:
            raise InvalidArgument(f"no input {name!r}; the request has {', '.join(map(repr, self.inputs))}")
        if name in self.running:
            raise InvalidArgument(f"inputs take rows from one another in a circle: {' → '.join([*self.running, name])}")
        if name not in self.finals:
            source = _Input(self, name, len(self.inputs[name]))
            source.forward()
            self.finals[name] = source.finals
        return self.finals[name][site]


@dataclass(eq=False, slots=True)
class _Bound:
    """A hook that applies to this input."""

    index: int
    hook: Hook
    sites: tuple[Site, ...]
    positions: list[int]
    """Chosen, whatever the condition will say."""


class _Input:
    """One input of a request, and the tap of its forward pass."""

    def __init__(self, request: _Request, name: str, prompt_length: int) -> None:
        self.request, self.name, self.prompt_length = request, name, prompt_length
        self.tokens = request.inputs[name]
        self.finals: dict[Site, Array] = {}
        self.captures: dict[tuple[int, str, str], Captured] = {}
        self.hooks = [self._bind(i, hook) for i, hook in enumerate(request.plan.hooks) if _applies(hook, name)]

    def _bind(self, index: int, hook: Hook) -> _Bound:
        sites = SitePattern.parse(hook.site).expand(len(self.request.model.layers))
        return _Bound(index, hook, sites, chosen_positions(hook.where, self.tokens, self.prompt_length))

    def forward(self) -> Array:
        """The logits; captures and final values are left behind."""
        self.request.running.append(self.name)
        logits = self.request.model.forward(self.tokens, self)
        self.request.running.pop()
        if missing := [str(s) for bound in self.hooks for s in bound.sites if s not in self.finals]:
            raise InvalidArgument(f"{self.request.model.architecture} has no {', '.join(missing)}")
        return logits

    def __call__(self, site: Site, value: Array, linear_input: Array | None = None) -> Array:
        """The tap: hooks at the site apply in plan order, each to what the one before it left."""
        raw = value
        for bound in self.hooks:
            if site not in bound.sites:
                continue
            positions = self._reached(bound, site, value)
            if bound.hook.edit is not None:
                value = self._edited(bound, bound.hook.edit, site, value, positions, linear_input)
            capture = bound.hook.capture
            if capture is not None:
                rows = rows_first(site, raw if capture.before else value)[sorted(positions)]
                for part, sent in self._captured(capture, site, rows, positions).items():
                    if site.name in ATTENTION_SITES:
                        sent = Captured(sent.positions, rows_first(site, sent.values))
                    self.captures[bound.index, str(site), part] = sent
        self.finals[site] = value
        return value

    def _captured(self, capture: Capture, site: Site, rows: Array, positions: list[int]) -> dict[str, Captured]:
        return captured_rows(capture, site, rows, sorted(positions), self.tokens, self.request.saes)

    def _reached(self, bound: _Bound, site: Site, value: Array) -> list[int]:
        """The chosen positions where the hook's condition holds too: all of several, or any."""
        when = bound.hook.where.when
        if when is None:
            return bound.positions
        true_at = [self._true_at(one, site, value) for one in when.parts]
        together = any if isinstance(when, AnyOf) else all
        return [p for p in bound.positions if together(one[p] for one in true_at)]

    def _true_at(self, when: Condition, site: Site, value: Array) -> Array:
        read = Site.parse(when.site, len(self.request.model.layers)) if when.site else site
        if read.name in ATTENTION_SITES:
            raise InvalidArgument(f"a condition cannot read {read}")
        if read != site and read not in self.finals:
            raise InvalidArgument(f"the condition reads {read}, which {site} does not follow")
        return holds(when, value if read == site else self.finals[read], self.prompt_length)

    def _edited(
        self, bound: _Bound, edit: Edit, site: Site, value: Array, positions: list[int], linear_input: Array | None
    ) -> Array:
        """The site's value with the rows at `positions` edited."""
        at = np.array(positions, dtype=np.int64)
        rows = rows_first(site, value).copy()
        visible = self._visible(site)[at] if site.name in ATTENTION_SITES else None
        around = Around(
            site=site,
            positions=at,
            visible=visible,
            linear_input=None if linear_input is None else linear_input[at],
            source=self._source(bound, edit, site, positions, visible),
            saes=self.request.saes,
        )
        rows[at] = edit_rows(edit, rows[at], around)
        return rows_first(site, rows)

    def _visible(self, site: Site) -> Array:
        assert site.layer is not None
        return visible_keys(len(self.tokens), self.request.model.layers[site.layer].attention.window)

    def _source(
        self, bound: _Bound, edit: Edit, site: Site, positions: list[int], visible: Array | None
    ) -> Array | None:
        """Rows for those of the hook's positions that its condition let through, paired before it spoke."""
        if not isinstance(edit, Replace):
            return None
        source, index = edit.source, bound.sites.index(site)
        if isinstance(source, Inline):
            rows = given_rows(source.value.floats(), site, 0, 0, bound.positions)
        elif isinstance(source, Stored):
            if source.capture_id not in self.request.stored:
                raise NotFound(f"no stored capture {source.capture_id!r}")
            rows = given_rows(self.request.stored[source.capture_id], site, index, len(bound.sites), bound.positions)
        elif isinstance(source, FromInput):
            named = named_positions(bound.hook.where, bound.positions, self.prompt_length)
            rows = input_rows(source, self.request.final(source.input, site), site, named)
        else:
            return None
        rows = rows[np.array([bound.positions.index(p) for p in positions], dtype=np.int64)]
        whole = edit.units is None or not isinstance(source, Inline)
        return with_keys(rows, site, visible) if visible is not None and whole else rows


def _applies(hook: Hook, name: str) -> bool:
    """Whether a hook acts on an input: those it names; if it names none, all but the one it takes rows from."""
    if hook.inputs is not None:
        return name in hook.inputs
    edit = hook.edit
    source = edit.source if isinstance(edit, Replace) else None
    return not (isinstance(source, FromInput) and source.input == name)
