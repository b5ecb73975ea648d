"""Gradients of a metric at sites: the request, the rules of its backward pass, and integrated paths."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InvalidArgument
from .metrics import MAX_TARGETS, Target, WeightedSum
from .model import Input, named_inputs
from .sites import Site
from .spec import Plan
from .variants.use import VariantUse, checked_uses

__all__ = ["RULES", "GradientsRequest", "IntegratedPath"]

RULES = ("ln", "identity", "half", "ah")
"""Of the backward pass; the forward is never touched. ln: a norm's scale is constant. identity: an activation act(x)
is x · (act(x)/x) with the quotient constant. half: gradients into both factors of a gated MLP are halved. ah: attention
patterns are constant. Sources: RelP (Jafari et al. 2025), AttnLRP (Achtibat et al. 2024)."""

MAX_STEPS = 64


@dataclass(frozen=True, slots=True)
class IntegratedPath:
    """Average the gradient over points of a straight line at one site, from another input's value to the own one.

    Point k of `steps` is other + k/steps · (own − other), k = 0 … steps − 1 (EAP-IG: Hanna et al. 2024).
    """

    source: str
    """Name of the other input; as many tokens as the own one."""
    steps: int = 5
    site: str = "embed"

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", Site.canonical(self.site))
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or not 1 <= self.steps <= MAX_STEPS:  # pyright: ignore[reportUnnecessaryIsInstance] - JSON can hold anything
            raise InvalidArgument(f"path.steps must be in 1 … {MAX_STEPS}, got {self.steps!r}")


@dataclass(frozen=True, slots=True)
class GradientsRequest:
    """One forward and one backward over every input, each with a target of its own.

    The plan's hooks edit the forward as in a run; captures with `gradient` send the gradient at the site instead of the
    value. Several targets of one prompt: name it several times. Every input needs exactly one target, `source_only`
    ones have none.
    """

    inputs: tuple[Input, ...]
    targets: tuple[Target, ...]
    model: str = ""
    plan: Plan = Plan()
    rules: tuple[str, ...] = ()
    direct: bool = False
    """Block gradients at the input of every MLP but the target's own: what is left is the direct effect."""
    path: IntegratedPath | None = None
    variants: tuple[VariantUse, ...] = ()
    """Of every input that names none itself; gradients flow through their deltas as through constants."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "variants", checked_uses(self.variants, "the request"))
        object.__setattr__(self, "inputs", named_inputs(self.inputs))
        object.__setattr__(self, "targets", tuple(self.targets))
        object.__setattr__(self, "rules", tuple(self.rules))
        check_targets(self.inputs, self.targets)
        unknown = [rule for rule in self.rules if rule not in RULES]
        if unknown:
            raise InvalidArgument(f"unknown rules {unknown}; allowed: {', '.join(RULES)}")
        for item in self.inputs:
            if not item.source_only and (found := len(targets_of(item, self.targets))) != 1:
                raise InvalidArgument(
                    f"input {item.name!r} has {found} targets; gradients need exactly one "
                    "(give target.inputs; for several targets name the prompt several times)"
                )


def targets_of(item: Input, targets: tuple[Target, ...]) -> tuple[Target, ...]:
    """The targets that an input is measured by."""
    if item.source_only:
        return ()
    return tuple(target for target in targets if target.inputs is None or item.name in target.inputs)


def check_targets(inputs: tuple[Input, ...], targets: tuple[Target, ...]) -> None:
    """Raise InvalidArgument for no or too many targets, or for one whose inputs do not exist or are sources only."""
    if not 1 <= len(targets) <= MAX_TARGETS:
        raise InvalidArgument(f"a request takes 1 to {MAX_TARGETS} targets, got {len(targets)}")
    if (n := sum(len(t.metric.metrics) if isinstance(t.metric, WeightedSum) else 1 for t in targets)) > MAX_TARGETS:
        raise InvalidArgument(f"the targets' sums hold {n} metrics; a request takes {MAX_TARGETS} in all")
    if all(item.source_only for item in inputs):
        raise InvalidArgument("every input is source_only, so nothing would be measured; leave it off one")
    known = {item.name for item in inputs if not item.source_only}
    for index, target in enumerate(targets):
        unknown = [name for name in target.inputs or () if name not in known]
        if unknown:
            raise InvalidArgument(f"target {index}: no inputs {unknown} to measure; the request has {sorted(known)}")
