"""Massive activations: rows whose norm dwarfs the others', as at a sequence's first token. Found, counted, left out.

Sun et al. 2024, "Massive Activations in Large Language Models". A few such rows carry most of a site's variance, so that
an SAE's explained variance with them says little of the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import InvalidArgument
from .rows import Rows

__all__ = [
    "DEFAULT_RULES",
    "FirstPositions",
    "MassiveDetector",
    "MassiveReport",
    "NormOverMedian",
    "Rule",
    "TokenIds",
    "apply_rules",
    "needs_median",
    "rules_data",
    "rules_from_data",
]

TIMES = 10.0
_EXAMPLES = 16
_ANSWER = "give FirstPositions, NormOverMedian or TokenIds, each once"


def _times(times: float) -> float:
    if isinstance(times, bool) or not np.isfinite(times) or times <= 1:
        raise InvalidArgument(f"norm_over_median: times is a number over 1, got {times!r}")
    return float(times)


@dataclass(frozen=True, slots=True)
class FirstPositions:
    """Leave out the first `n` positions of every sequence, which models use as attention sinks."""

    name: ClassVar[str] = "first_positions"
    n: int = 1

    def __post_init__(self) -> None:
        if type(self.n) is not int or self.n < 1:
            raise InvalidArgument(f"first_positions: n is a whole number of 1 or more, got {self.n!r}")


@dataclass(frozen=True, slots=True)
class NormOverMedian:
    """Leave out rows whose norm is over `times` the median norm, which is taken once, over the calibration rows."""

    name: ClassVar[str] = "norm_over_median"
    times: float = TIMES

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", _times(self.times))


@dataclass(frozen=True, slots=True)
class TokenIds:
    """Leave out rows whose input token is one of these: special tokens, say, that packing puts anywhere."""

    name: ClassVar[str] = "token_ids"
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        ids = tuple(self.ids)
        if not ids or not all(type(i) is int and i >= 0 for i in ids):
            raise InvalidArgument(f"token_ids: one or more ids of 0 and up, got {self.ids!r}")
        object.__setattr__(self, "ids", ids)


Rule = FirstPositions | NormOverMedian | TokenIds
DEFAULT_RULES: tuple[Rule, ...] = (FirstPositions(), NormOverMedian())
_KINDS: dict[str, type[Rule]] = {kind.name: kind for kind in (FirstPositions, NormOverMedian, TokenIds)}


def rules_data(rules: Sequence[Rule]) -> list[dict[str, Any]]:
    """As JSON-able data: [{"rule": "first_positions", "n": 1}, …]. Raises InvalidArgument for anything else."""
    if not all(isinstance(rule, Rule) for rule in rules):  # pyright: ignore[reportUnnecessaryIsInstance] - users write it
        raise InvalidArgument(f"rules {rules!r}: {_ANSWER}")
    names = [rule.name for rule in rules]
    if len(set(names)) < len(names):
        raise InvalidArgument(f"rules {', '.join(names)}: {_ANSWER}")
    return [
        {"rule": rule.name, **(asdict(rule) if not isinstance(rule, TokenIds) else {"ids": list(rule.ids)})}
        for rule in rules
    ]


def rules_from_data(data: Sequence[Mapping[str, Any]]) -> tuple[Rule, ...]:
    """What `rules_data` gave. Raises InvalidArgument for unknown rules or options."""
    found: list[Rule] = []
    for item in data:
        options = {key: value for key, value in item.items() if key != "rule"}
        try:
            found.append(_KINDS[item["rule"]](**options))
        except (KeyError, TypeError):
            raise InvalidArgument(f"no rule {dict(item)!r}; allowed: {', '.join(_KINDS)}, with their options") from None
    return tuple(found)


def needs_median(rules: Sequence[Rule]) -> bool:
    """Whether a rule goes by the median norm."""
    return any(isinstance(rule, NormOverMedian) for rule in rules)


def apply_rules(rules: Sequence[Rule], rows: Rows, median: float) -> NDArray[np.int8]:
    """[row]: the index of the first rule that leaves the row out; -1: it stays."""
    out = np.full(len(rows), -1, dtype=np.int8)
    for index in reversed(range(len(rules))):
        rule = rules[index]
        if isinstance(rule, FirstPositions):
            hit = rows.positions < rule.n
        elif isinstance(rule, NormOverMedian):
            hit = rows.norms > rule.times * median
        else:
            hit = np.isin(rows.token_ids, rule.ids)
        out[hit] = index
    return out


@dataclass(frozen=True, slots=True)
class MassiveReport:
    """How many rows are massive, and where they are."""

    n_tokens: int
    median_norm: float
    times: float
    """A row is massive when its norm is over `times` the median."""
    n_massive: int
    max_norm: float
    """Of all rows."""
    norms: tuple[float, float, float]
    """Least, median and greatest norm of the massive rows; zeros without any."""
    squared_norm_share: float
    """Of the sum of all squared norms, what the massive rows hold."""
    positions: Mapping[int, int]
    """Position in the sequence → massive rows there, most first."""
    token_ids: Mapping[int, int]
    """Input token → massive rows, most first."""
    dimensions: Mapping[int, int]
    """Unit with the largest |value| → massive rows, most first."""
    examples: tuple[Mapping[str, Any], ...]
    """The rows with the greatest norms: norm, position, token_id, document, offset, dimension."""

    def data(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def __str__(self) -> str:
        share = self.n_massive / max(self.n_tokens, 1)
        head = (
            f"{self.n_massive:,} of {self.n_tokens:,} rows ({share:.3%}) have a norm over {self.times:g} × the median "
        )
        if not self.n_massive:
            return f"{head}of {self.median_norm:.4g}; the greatest is {self.max_norm:.4g}"
        places = ", ".join(f"{position} ({n:,})" for position, n in list(self.positions.items())[:5])
        units = ", ".join(f"{unit} ({n:,})" for unit, n in list(self.dimensions.items())[:3])
        return (
            f"{head}of {self.median_norm:.4g}, up to {self.max_norm:.4g}; they hold {self.squared_norm_share:.1%} of the "
            f"squared norm. Positions: {places}. Largest units: {units}"
        )


class MassiveDetector:
    """Counts massive rows of a stream, in memory that does not grow with it."""

    def __init__(self, median: float, times: float = TIMES) -> None:
        """`median`: the norm that `times` is taken of; from calibration rows, so that one pass is enough."""
        if not np.isfinite(median) or median < 0:
            raise InvalidArgument(f"the median norm is a finite number of 0 or more, got {median}")
        self.median, self.times = float(median), _times(times)
        self._n, self._max, self._squares, self._massive_squares = 0, 0.0, 0.0, 0.0
        self._counts: dict[str, Counter[int]] = {name: Counter() for name in ("position", "token_id", "dimension")}
        self._norms: Counter[float] = Counter()
        self._examples: list[dict[str, Any]] = []

    def update(self, rows: Rows) -> None:
        """Take some rows, in any order; left-out ones count as well."""
        if not len(rows):
            return
        self._n += len(rows)
        self._max = max(self._max, float(rows.norms.max()))
        squares = rows.norms.astype(np.float64) ** 2
        self._squares += float(squares.sum())
        hit = np.flatnonzero(rows.norms > self.times * self.median)
        self._massive_squares += float(squares[hit].sum())
        for i in hit.tolist():
            dimension = int(np.abs(rows.values[i].astype(np.float32)).argmax())
            found = {"position": int(rows.positions[i]), "token_id": int(rows.token_ids[i]), "dimension": dimension}
            for name, value in found.items():
                self._counts[name][value] += 1
            norm = float(rows.norms[i])
            self._norms[float(f"{norm:.4g}")] += 1  # four digits: few distinct values, however many rows
            place = {"document": int(rows.documents[i]), "offset": int(rows.offsets[i])}
            self._examples.append({"norm": norm, **found, **place})
        self._examples = sorted(self._examples, key=lambda item: -item["norm"])[:_EXAMPLES]

    def report(self) -> MassiveReport:
        """Of the rows so far."""
        counts = {name: dict(counter.most_common()) for name, counter in self._counts.items()}
        return MassiveReport(
            n_tokens=self._n,
            median_norm=self.median,
            times=self.times,
            n_massive=self._norms.total(),
            max_norm=self._max,
            norms=_spread(self._norms),
            squared_norm_share=self._massive_squares / self._squares if self._squares else 0.0,
            positions=counts["position"],
            token_ids=counts["token_id"],
            dimensions=counts["dimension"],
            examples=tuple(self._examples),
        )


def _spread(norms: Counter[float]) -> tuple[float, float, float]:
    if not norms:
        return 0.0, 0.0, 0.0
    values = sorted(norms)
    middle = np.searchsorted(np.cumsum([norms[value] for value in values]), (norms.total() + 1) // 2)
    return values[0], values[int(middle)], values[-1]
