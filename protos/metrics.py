"""What a gradient is taken of and what a sweep measures: one number of a forward. Plain data, checked on construction."""

from __future__ import annotations

from dataclasses import dataclass
from operator import index

from .edits import float_tensor
from .errors import InvalidArgument
from .numbers import indices
from .sites import Site
from .tensors import Tensor

__all__ = [
    "Coordinate",
    "Kl",
    "LogProb",
    "Logit",
    "LogitDifference",
    "Measured",
    "Metric",
    "Target",
    "TopLogits",
]

MAX_TARGETS = 256
MAX_TOP_LOGITS = 100


def _integer(metric: object, name: str, what: str) -> int:
    """A field made a plain integer, from numpy's too; raises InvalidArgument for anything else."""
    value = getattr(metric, name)
    try:
        if isinstance(value, bool):
            raise TypeError
        found = index(value)
    except TypeError:
        raise InvalidArgument(f"{what}, got {value!r}") from None
    object.__setattr__(metric, name, found)
    return found


def _position(metric: object, kind: str, name: str = "position") -> None:
    _integer(metric, name, f"{kind}.{name} must be an integer (negative: from the prompt's end)")


def _token(metric: object, kind: str) -> None:
    what = f"{kind}.token must be a token id of 0 or more"
    if (token := _integer(metric, "token", what)) < 0:
        raise InvalidArgument(f"{what}, got {token}")


def _tokens(values: tuple[int, ...], what: str) -> tuple[int, ...]:
    found = indices(values, what)
    if not found:
        raise InvalidArgument(f"{what} is empty; give at least one token id")
    return found


@dataclass(frozen=True, slots=True)
class Logit:
    """The logit of one token."""

    token: int
    position: int = -1
    """Of the row that predicts; negative: from the prompt's end."""
    centred: bool = False
    """Minus the mean logit of the row."""

    def __post_init__(self) -> None:
        _token(self, "logit")
        _position(self, "logit")


@dataclass(frozen=True, slots=True)
class LogitDifference:
    """Mean logit of the correct tokens minus mean logit of the wrong ones."""

    correct: tuple[int, ...]
    wrong: tuple[int, ...]
    position: int = -1

    def __post_init__(self) -> None:
        for name in ("correct", "wrong"):
            object.__setattr__(self, name, _tokens(getattr(self, name), f"logit_difference.{name}"))
        _position(self, "logit_difference")


@dataclass(frozen=True, slots=True)
class TopLogits:
    """The sum of the k largest logits; which ones they are counts as constant."""

    k: int = 5
    position: int = -1
    centred: bool = False
    """Each minus the mean logit of the row."""

    def __post_init__(self) -> None:
        what = f"top_logits.k must be in 1 … {MAX_TOP_LOGITS}"
        if not 1 <= (k := _integer(self, "k", what)) <= MAX_TOP_LOGITS:
            raise InvalidArgument(f"{what}, got {k}")
        _position(self, "top_logits")


@dataclass(frozen=True, slots=True)
class LogProb:
    """The natural log-probability of one token."""

    token: int
    position: int = -1

    def __post_init__(self) -> None:
        _token(self, "log_prob")
        _position(self, "log_prob")


@dataclass(frozen=True, slots=True)
class Kl:
    """KL(p_baseline ‖ p), in nats, with p_baseline from another input of the request, which counts as constant."""

    baseline: str
    """Name of the other input."""
    position: int = -1
    baseline_position: int | None = None
    """None: `position`, counted in the other input."""

    def __post_init__(self) -> None:
        _position(self, "kl")
        if self.baseline_position is not None:
            _position(self, "kl", "baseline_position")


@dataclass(frozen=True, slots=True)
class Coordinate:
    """One coordinate of a site's row: a unit, or the dot product with a direction. Its gradient is a vector-Jacobian product."""

    site: str
    position: int
    unit: int | None = None
    head: int | None = None
    """At head sites."""
    direction: Tensor | None = None
    """[width]."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "site", Site.canonical(self.site))
        if (self.unit is None) == (self.direction is None):
            raise InvalidArgument("coordinate needs exactly one of unit and direction")
        _position(self, "coordinate")
        for name in ("unit", "head"):
            what = f"coordinate.{name} must be an integer of 0 or more"
            if getattr(self, name) is not None and (value := _integer(self, name, what)) < 0:
                raise InvalidArgument(f"{what}, got {value}")
        if self.direction is not None:
            object.__setattr__(self, "direction", float_tensor(self.direction, "coordinate.direction", 1))


Metric = Logit | LogitDifference | TopLogits | LogProb | Kl | Coordinate


@dataclass(frozen=True, slots=True)
class Target:
    """A metric, and the inputs that it is measured on."""

    metric: Metric
    inputs: tuple[str, ...] | None = None
    """Names of the request's inputs; None: all that are not `source_only`."""

    def __post_init__(self) -> None:
        if self.inputs is not None:
            object.__setattr__(self, "inputs", tuple(self.inputs))
            if not self.inputs:
                raise InvalidArgument("target.inputs is empty; leave it out to mean every input")


@dataclass(frozen=True, slots=True)
class Measured:
    """Metrics of one input: of one forward (gradients), or of the next plans of a sweep."""

    input: str
    values: Tensor
    """[plan, target of this input], float64; along a path of gradients [point, 1]."""
    plans: tuple[int, ...] = ()
    """Index of each plan of a sweep, in the order of the values; empty for gradients."""
