"""What steering each choice of tokens did, what it cost, and what random directions did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument
from ..reports.statistics import Figure as Interval, measured
from .continuations import Continued

if TYPE_CHECKING:
    from ..plots.style import Figure

__all__ = ["MOST_KL", "SteeringComparison"]

Floats = NDArray[np.float64]
MOST_KL = 0.5
"""Nats up to which areas under the shift–KL curve are taken."""
MOST_WRONG = 0.25
"""Share of prompts that may move the wrong way."""


@dataclass(frozen=True, slots=True, eq=False)
class SteeringComparison:
    """Shifts of a metric by strategy, strength and prompt."""

    site: str
    budget: str
    strategies: tuple[str, ...]
    strengths: tuple[float, ...]
    """As asked for: in units of `unit`, or mean KL with the budget "kl"."""
    used: Floats
    """[strategy, strength]: what was added, in units of `unit`."""
    unit: float
    """Mean ‖h‖ at the site over the prompts' tokens but the first."""
    base: Floats
    """[prompt]: the metric unsteered."""
    shifts: Floats
    """[strategy, strength, prompt]."""
    kl: Floats
    """[strategy, strength, prompt]: KL(base ‖ steered) of the token after the prompt, nats."""
    control_column: int
    """Of the strength that controls were given."""
    random: Floats
    """[strategy, direction]: mean shift by random directions of equal norm."""
    shuffled: Floats
    """[strategy, vector]: by vectors of shuffled pairs; none for a bare vector."""
    n_tokens: Mapping[str, float]
    """Strategy → mean number of steered tokens."""
    continued: Mapping[str, Continued] = field(default_factory=dict[str, Continued])
    """Change → its continuations: "base", the strategies, and "generated"."""
    told: str = ""
    """The vector's own diagnostics."""

    def interval(self, strategy: str, strength: float) -> Interval:
        """Mean shift over prompts with its bootstrap interval."""
        return measured(self.shifts[self._row(strategy), self._column(strength)])

    def wrong(self, strategy: str, strength: float) -> float:
        """Share of prompts that move the wrong way."""
        return float((self.shifts[self._row(strategy), self._column(strength)] < 0).mean())

    def curve(self, strategy: str) -> tuple[Floats, Floats]:
        """(mean KL, mean shift), [strength + 1] each, from (0, 0) on, by rising KL."""
        row = self._row(strategy)
        kl, shift = self.kl[row].mean(axis=1), self.shifts[row].mean(axis=1)
        order = np.argsort(kl, kind="stable")
        return np.concatenate([[0.0], kl[order]]), np.concatenate([[0.0], shift[order]])

    def shift_at(self, strategy: str, kl: float) -> float:
        """Mean shift where the curve has a mean KL, between its points on a line; NaN beyond its last."""
        xs, ys = self.curve(strategy)
        return float(np.interp(kl, xs, ys)) if kl <= xs[-1] else float("nan")

    def area(self, strategy: str, most: float = MOST_KL) -> float:
        """Area under the curve up to a KL, over that KL: the mean shift at a cost up to it. Beyond its last point the curve counts as level."""
        xs, ys = self.curve(strategy)
        inside = xs < most
        xs, ys = np.append(xs[inside], most), np.append(ys[inside], np.interp(most, xs, ys))
        return float(((xs[1:] - xs[:-1]) * (ys[1:] + ys[:-1]) / 2).sum()) / most

    def beats(self, strategy: str) -> int:
        """How many random directions move the metric less, at the controls' strength."""
        row = self._row(strategy)
        return int((self.random[row] < self.shifts[row, self.control_column].mean()).sum())

    @property
    def sentences(self) -> tuple[str, ...]:
        """What a reader must be told: where steering does no more than chance, or hurts."""
        found: list[str] = []
        for row, name in enumerate(self.strategies):
            shift, at = float(self.shifts[row, self.control_column].mean()), self.strengths[self.control_column]
            for what, control in (
                ("random directions", self.random[row]),
                ("vectors of shuffled pairs", self.shuffled[row]),
            ):
                if len(control) and shift <= (level := float(np.quantile(control, 0.95))):
                    found.append(
                        f"{name} at {at:g} moves the measure by {shift:+.2f}, no more than the 95th percentile of {what} ({level:+.2f})"
                    )
            wrong = self.wrong(name, at)
            if wrong > MOST_WRONG:
                found.append(f"{name} at {at:g} moves {wrong:.0%} of the prompts the wrong way")
        dense = [name for name in self.strategies if name.startswith("dense")]
        for name in dense:
            last = "last_" + name.removeprefix("dense_")
            if last in self.strategies and self.area(name) <= self.area(last):
                found.append(
                    f"{name} is no better than {last}: area {self.area(name):+.2f} against {self.area(last):+.2f}"
                )
        return tuple(found)

    def figure(self, path: str | Path | None = None) -> Figure:
        """Shift against KL, a line a strategy; grey: random directions at the controls' strength."""
        from ..plots.style import GREY, PALETTE, finished, new, styled, title

        @styled
        def drawn() -> Figure:
            figure, axes = new(6.8, 4.0)
            for index, name in enumerate(self.strategies):
                xs, ys = self.curve(name)
                axes.plot(xs, ys, color=PALETTE[index % len(PALETTE)], marker="o", label=name, zorder=3)
            if self.random.size:
                low, high = np.quantile(self.random, [0.025, 0.975])
                axes.axhspan(low, high, color=GREY, alpha=0.15, linewidth=0, label="random directions, 95 %")
            axes.axhline(0, color=GREY, linewidth=0.8)
            axes.set(xlabel="KL(base ‖ steered) at the next token, nats", ylabel="shift of the measure")
            axes.grid(axis="y", zorder=0)
            cast("Any", figure).legend(loc="outside right upper", borderaxespad=1.5)
            title(axes, f"Steering at {self.site}", f"{len(self.base)} prompts, budget {self.budget}")
            return finished(figure, path)

        return drawn()

    def _row(self, strategy: str) -> int:
        if strategy not in self.strategies:
            raise InvalidArgument(f"no strategy {strategy!r} was measured; there are {', '.join(self.strategies)}")
        return self.strategies.index(strategy)

    def _column(self, strength: float) -> int:
        if strength not in self.strengths:
            raise InvalidArgument(
                f"no strength {strength:g} was measured; there are {', '.join(f'{k:g}' for k in self.strengths)}"
            )
        return self.strengths.index(strength)

    def __str__(self) -> str:
        at = self.strengths[self.control_column]
        lines = [self.told] * bool(self.told)
        lines += [f"{len(self.base)} prompts, base {self.base.mean():+.2f}, budget {self.budget}; at {at:g}:"]
        lines += [
            f"{'strategy':<12}{'tokens':>7}{'shift':>8}{'95 %':>17}{'KL':>7}{'wrong':>7}{'random below':>14}{'area':>7}"
        ]
        for row, name in enumerate(self.strategies):
            one, kl = self.interval(name, at), self.kl[row, self.control_column].mean()
            lines.append(
                f"{name:<12}{self.n_tokens[name]:>7.1f}{one.value:>+8.2f}{f'[{one.low:+.2f}, {one.high:+.2f}]':>17}{kl:>7.2f}"
                f"{self.wrong(name, at):>7.0%}{f'{self.beats(name)}/{self.random.shape[1]}':>14}{self.area(name):>+7.2f}"
            )
        for name, one in self.continued.items():
            lines.append(
                f"{name}: perplexity by the base {float(np.median(one.perplexity)):.1f}, repeated 4-grams {one.repetition.mean():.0%}"
            )
        return "\n".join([*lines, *self.sentences])
