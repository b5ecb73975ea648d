"""Hooks: what to read and edit, where, and when. Plain data, checked on construction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .conditions import AllOf, AnyOf, Condition, When, bounded, one_of
from .edits import Edit, Replace, float_tensor
from .errors import InvalidArgument
from .latents import ReadLatents
from .numbers import indices
from .sites import SitePattern
from .tensors import FLOAT_DTYPES, Tensor

__all__ = [
    "AllOf",
    "AnyOf",
    "Capture",
    "Condition",
    "Gather",
    "Hook",
    "Last",
    "Mean",
    "NextLogprob",
    "Norm",
    "Project",
    "Reduction",
    "Span",
    "TopK",
    "When",
    "Where",
]

MAY_BE_OUT = ("attn_scores", "logits", "router_logits")
"""Sites before a softmax: −inf there takes a key, a token or an expert out."""
MAX_TOP_K = 4096


@dataclass(frozen=True, slots=True)
class Last:
    """The last row the hook selects, sent once, when the request ends."""


@dataclass(frozen=True, slots=True)
class Mean:
    """The float32 mean of the rows the hook selects, sent once, when the request ends."""


@dataclass(frozen=True, slots=True)
class Norm:
    """The float32 L2 norm of each row (of each head, at head sites)."""


@dataclass(frozen=True, slots=True)
class TopK:
    """The k largest values of each row with their indices: two tensors, parts `value` and `index`."""

    k: int

    def __post_init__(self) -> None:
        if not 1 <= self.k <= MAX_TOP_K:
            raise InvalidArgument(f"top_k.k must be in 1 … {MAX_TOP_K}, got {self.k}")


@dataclass(frozen=True, slots=True)
class Project:
    """Float32 coordinates of each row along given directions (not normalised): row · directionsᵀ."""

    directions: Tensor
    """[n, width]."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "directions", float_tensor(self.directions, "project.directions", (1, 2)))


@dataclass(frozen=True, slots=True)
class Gather:
    """The float32 values of the given units of the last axis; at `logits` these are token ids."""

    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", indices(self.ids, "gather.ids"))
        if self.ids is None:  # pyright: ignore[reportUnnecessaryComparison] - JSON can hold anything
            raise InvalidArgument("gather needs ids")


@dataclass(frozen=True, slots=True)
class NextLogprob:
    """At `logits`: the float32 log-probability of the token that follows; absent for the last row of a run."""

    top: int = 0
    """Beside it, those of the n likeliest tokens, largest first: parts `value` and `index`. The token's own is the same
    float where it is among them."""

    def __post_init__(self) -> None:
        if not 0 <= self.top <= MAX_TOP_K:
            raise InvalidArgument(f"next_logprob.top must be in 0 … {MAX_TOP_K}, got {self.top}")


Reduction = Last | Mean | Norm | TopK | Project | Gather | NextLogprob | ReadLatents


@dataclass(frozen=True, slots=True)
class Capture:
    """Send the value at the site, after earlier edits in the plan."""

    before: bool = False
    """The raw value, before any edit."""
    dtype: str | None = None
    """float32, float16, bfloat16 or float64; None: the tensor's own (float32 for reductions that compute)."""
    reduce: Reduction | None = None
    store: bool = False
    """Keep the tensor on the server under an id, for later `replace`, instead of sending it."""
    gradient: bool = False
    """Gradients only: the gradient of the target at the site, after all edits there, instead of the value."""

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in FLOAT_DTYPES:
            raise InvalidArgument(f"capture.dtype {self.dtype!r}; allowed: {', '.join(FLOAT_DTYPES)}")
        if self.store and self.reduce is not None:
            raise InvalidArgument("capture.store keeps whole rows for patching; leave out reduce")
        if self.gradient and (self.before or isinstance(self.reduce, NextLogprob)):
            raise InvalidArgument("capture.gradient is of the value after all edits; leave out before and next_logprob")


@dataclass(frozen=True, slots=True)
class Span:
    """Half-open span of absolute positions; negative numbers count from the prompt's end."""

    start: int
    stop: int | None = None
    """None: no end."""


@dataclass(frozen=True, slots=True)
class Where:
    """Which tokens a hook applies to: all that pass every filter given."""

    positions: tuple[int, ...] | None = None
    """Absolute token positions; negative: from the prompt's end (-1 is its last token)."""
    spans: tuple[Span, ...] | None = None
    phase: Literal["all", "prompt", "generated"] = "all"
    token_ids: tuple[int, ...] | None = None
    """Only rows whose input token is one of these."""
    when: When | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "positions", indices(self.positions, "where.positions", negative=True))
        object.__setattr__(self, "token_ids", indices(self.token_ids, "where.token_ids"))
        one_of(self.phase, ("all", "prompt", "generated"), "where.phase")
        if self.spans is not None:
            object.__setattr__(self, "spans", tuple(self.spans))
            if not self.spans:
                raise InvalidArgument("where.spans is empty; leave it out to mean all positions")
        if self.positions is not None and self.spans is not None:
            raise InvalidArgument("where: give positions or spans, not both")
        if self.when is not None and self.when.latched and self.phase == "prompt":
            raise InvalidArgument("where: a latched condition is decided by the prompt, so it cannot apply to it")


@dataclass(frozen=True, slots=True)
class Hook:
    """Site + where + an edit, a capture, or both (the capture then sees the edited value)."""

    site: str
    """A site, or a pattern that stands for several: `resid_post.10`, `resid_post.*`, `z.4:8`."""
    edit: Edit | None = None
    capture: Capture | None = None
    where: Where = Where()
    inputs: tuple[str, ...] | None = None
    """Names of the request's inputs it applies to; None: all of them."""
    id: str | None = None
    """A label that comes back with the tensors."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", str(SitePattern.parse(bounded(self.site, "hook.site"))))
        if self.id is not None:
            bounded(self.id, "hook.id")
        if self.inputs is not None:
            object.__setattr__(self, "inputs", tuple(self.inputs))
            if not self.inputs:
                raise InvalidArgument("hook.inputs is empty; leave it out to mean every input")
        if isinstance(self.edit, Replace) and self.edit.takes_out and not self.site.startswith(MAY_BE_OUT):
            raise InvalidArgument(
                f"the hook at {self.site} replaces by −infinity, which is possible at {', '.join(MAY_BE_OUT)} alone; send numbers"
            )
        if self.edit is None and self.capture is None:
            raise InvalidArgument(f"the hook at {self.site} has neither an edit nor a capture; give at least one")
