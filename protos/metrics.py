"""What a gradient is taken of and what a sweep measures: one number of a forward. Plain data, checked on construction."""

from __future__ import annotations

from dataclasses import dataclass
from operator import index
from typing import get_args

from .edits import float_tensor
from .errors import InvalidArgument
from .numbers import finite, indices
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
    "WeightedSum",
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


def _one_or_several(metric: Logit | LogProb, kind: str) -> None:
    if (metric.token is None) == (metric.tokens is None):
        raise InvalidArgument(f"{kind} needs exactly one of token (an id) and tokens (several)")
    if metric.tokens is None:
        _token(metric, kind)
    else:
        object.__setattr__(metric, "tokens", _tokens(metric.tokens, f"{kind}.tokens"))


def _ids(metric: Logit | LogProb) -> tuple[int, ...]:
    if metric.tokens is not None:
        return metric.tokens
    assert metric.token is not None
    return (metric.token,)


@dataclass(frozen=True, slots=True)
class Logit:
    """The logit of one token, or the mean logit of several."""

    token: int | None = None
    position: int = -1
    """Of the row that predicts; negative: from the prompt's end."""
    centred: bool = False
    """Minus the mean logit of the row."""
    tokens: tuple[int, ...] | None = None
    """In place of one."""

    def __post_init__(self) -> None:
        _one_or_several(self, "logit")
        _position(self, "logit")

    @property
    def ids(self) -> tuple[int, ...]:
        """The token, or the tokens."""
        return _ids(self)


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
    """The natural log-probability of one token, or of a set: the logarithm of their summed probability."""

    token: int | None = None
    position: int = -1
    tokens: tuple[int, ...] | None = None
    """In place of one."""

    def __post_init__(self) -> None:
        _one_or_several(self, "log_prob")
        _position(self, "log_prob")

    @property
    def ids(self) -> tuple[int, ...]:
        """The token, or the tokens."""
        return _ids(self)


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


OfLogits = Logit | LogitDifference | TopLogits | LogProb | Kl


@dataclass(frozen=True, slots=True)
class WeightedSum:
    """Σ weight·metric over metrics of logits, each at its own position."""

    metrics: tuple[OfLogits, ...]
    weights: tuple[float, ...] = ()
    """One a metric; none: 1 each."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "metrics", tuple(self.metrics))
        wrong = [metric for metric in self.metrics if not isinstance(metric, get_args(OfLogits))]
        if wrong or not 1 <= len(self.metrics) <= MAX_TARGETS:
            found = type(wrong[0]).__name__ if wrong else f"{len(self.metrics)} of them"
            raise InvalidArgument(
                f"weighted_sum takes 1 to {MAX_TARGETS} metrics of logits ({', '.join(c.__name__ for c in get_args(OfLogits))}), "
                f"got {found}; ask for other metrics on their own and add their values and gradients up"
            )
        weights = tuple(finite(weight, "weighted_sum.weights") for weight in self.weights)
        if len(weights) not in (0, len(self.metrics)):
            raise InvalidArgument(
                f"weighted_sum has {len(self.metrics)} metrics and {len(weights)} weights; give one each"
            )
        object.__setattr__(self, "weights", weights or (1.0,) * len(self.metrics))


Metric = Logit | LogitDifference | TopLogits | LogProb | Kl | Coordinate | WeightedSum


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
