"""Plans: hooks in their order."""

from __future__ import annotations

from dataclasses import dataclass

from .edits import (
    Add,
    Affine,
    Clamp,
    Constant,
    Edit,
    FromInput,
    Inline,
    LowRank,
    Noise,
    ProjectOut,
    Replace,
    Scale,
    Source,
    Stored,
    Zeros,
)
from .errors import InvalidArgument
from .hooks import (
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
    Project,
    Reduction,
    Span,
    TopK,
    When,
    Where,
)
from .latents import LatentChange, Latents, ReadLatents
from .sites import AXES, Site, SitePattern
from .telling import told_plan
from .tensors import Tensor

__all__ = [
    "AXES",
    "Add",
    "Affine",
    "AllOf",
    "AnyOf",
    "Capture",
    "Clamp",
    "Condition",
    "Constant",
    "Edit",
    "FromInput",
    "Gather",
    "Hook",
    "Inline",
    "Last",
    "LatentChange",
    "Latents",
    "LowRank",
    "Mean",
    "NextLogprob",
    "Noise",
    "Norm",
    "Plan",
    "Project",
    "ProjectOut",
    "ReadLatents",
    "Reduction",
    "Replace",
    "Scale",
    "Site",
    "SitePattern",
    "Source",
    "Span",
    "Stored",
    "Tensor",
    "TopK",
    "When",
    "Where",
    "Zeros",
]

MAX_HOOKS = 1024


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """An ordered list of hooks. Hooks at the same site apply in this order."""

    hooks: tuple[Hook, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "hooks", tuple(self.hooks))
        if len(self.hooks) > MAX_HOOKS:
            raise InvalidArgument(f"the plan has {len(self.hooks)} hooks; at most {MAX_HOOKS} are allowed")
        ids = [hook.id for hook in self.hooks if hook.id is not None]
        if len(set(ids)) != len(ids):
            raise InvalidArgument(f"hook ids must be distinct, got {ids}")

    def __repr__(self) -> str:
        return told_plan(self.hooks)
