"""Figures: ratios of things timed in turns within one run, and the table that shows them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from statistics import median

__all__ = ["Figure", "Samples", "compare", "interleaved", "report", "table"]

Samples = dict[str, list[float]]
"""What was timed → one value a round."""


def interleaved(
    variants: Mapping[str, Callable[[], float]], *, rounds: int, warm: bool = True, any_order: bool = False
) -> Samples:
    """Time every variant once a round, A B C A B C …; one more round goes before them and is not counted.

    `any_order`: each round in an order of its own, so that none always comes after the same other one.
    """
    samples: Samples = {name: [] for name in variants}
    draw = Random(0)
    for number in range(-1 if warm else 0, rounds):
        names = list(variants)
        if any_order:
            draw.shuffle(names)
        for name in names:
            value = variants[name]()
            print(f"    {'warm-up' if number < 0 else f'round {number + 1}'}: {name}: {value:.4g}", flush=True)
            if number >= 0:
                samples[name].append(value)
    return samples


@dataclass(frozen=True, slots=True)
class Figure:
    """One row: a number a round, against a target where there is one."""

    name: str
    values: tuple[float, ...]
    target: float | None = None
    at_most: bool = False
    """The target is a bound from above (bytes) and not from below (ratios)."""
    unit: str = "×"
    behind: str = ""
    """The medians that the ratio is made of."""
    note: str = ""

    @property
    def median(self) -> float:
        """The middle round."""
        return median(self.values)

    @property
    def verdict(self) -> str:
        """Whether the median meets the target."""
        if self.target is None:
            return "—"
        met = self.median <= self.target if self.at_most else self.median >= self.target
        return "pass" if met else "**miss**"


def compare(
    name: str,
    samples: Samples,
    pair: tuple[str, str],
    *,
    unit: str,
    target: float | None = None,
    times: bool = False,
    note: str = "",
) -> Figure:
    """The first of a pair over the second, round by round; of times the second over the first, so that more is faster."""
    ours, theirs = (samples[key] for key in pair)
    values = tuple(b / a if times else a / b for a, b in zip(ours, theirs, strict=True))
    behind = " / ".join(_short(median(found)) for found in (ours, theirs))
    return Figure(name, values, target, behind=f"{behind} {unit}", note=note)


def table(figures: list[Figure]) -> str:
    """A markdown table."""
    rows = [
        ("figure", "median", "min … max", "target", "", "medians behind it"),
        ("---", "---:", "---:", "---:", "---", "---"),
        *(_row(figure) for figure in figures),
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def report(title: str, figures: list[Figure]) -> str:
    """A section in markdown: its table, and the notes below it."""
    notes = [f"- {figure.name}: {figure.note}" for figure in figures if figure.note]
    return "\n".join([f"### {title}", "", table(figures), *([""] if notes else []), *notes, ""])


def _row(figure: Figure) -> tuple[str, ...]:
    sign = "≤" if figure.at_most else "≥"
    target = "—" if figure.target is None else f"{sign} {figure.target:g}{_suffix(figure)}"
    spread = f"{_short(min(figure.values))} … {_short(max(figure.values))}"
    return (figure.name, _short(figure.median) + _suffix(figure), spread, target, figure.verdict, figure.behind)


def _suffix(figure: Figure) -> str:
    return " ×" if figure.unit == "×" else f" {figure.unit}"


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}" if abs(value) < 1000 else f"{value:,.0f}"
