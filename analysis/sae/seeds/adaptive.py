"""Adaptive L0: the k whose dictionaries agree most beyond chance, and whether it beats a fixed one on fresh seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ....protos.errors import FailedPrecondition, InvalidArgument
from .cells import Condition, TrainOne
from .resampling import Interval, Method, difference
from .sweeps import Row, Sweep, run_sweep

__all__ = ["FLOOR", "KS", "AdaptiveL0", "Verdict", "adaptive_l0", "choose"]

KS = (4, 8, 12, 16, 24, 32, 48, 64)
"""HUSAI's candidates."""
FLOOR = 0.20
"""Of explained variance, the mean over seeds: below it, agreement is of SAEs that rebuild next to nothing."""

Verdict = Literal["yes", "no", "undecided", "same k"]


@dataclass(frozen=True, slots=True, eq=False)
class AdaptiveL0:
    """A search over k, and the comparison on seeds that had no say in it."""

    search: Sweep
    floor: float
    chosen: Row
    """The row of the search."""
    adaptive: Row
    """Retrained at the chosen k."""
    fixed: Row
    """Retrained at the fixed k: the same row where the two k are one."""
    gain: Interval | None
    """PWMCC of the adaptive less that of the fixed; None where the two k are one."""

    @property
    def verdict(self) -> Verdict:
        """Whether adaptive > fixed: by whether the interval of the gain lies above 0, below it, or holds it."""
        if self.gain is None:
            return "same k"
        return "yes" if self.gain.low > 0 else "no" if self.gain.high < 0 else "undecided"

    @property
    def conclusion(self) -> str:
        """In words, whichever way it went."""
        k, fixed_k = self.adaptive.condition.k, self.fixed.condition.k
        if self.gain is None:
            return f"adaptive > fixed: same k. The search chose k {k}, which is the fixed one. {self._beyond_chance()}"
        gain, one, two = self.gain, self.adaptive, self.fixed
        return (
            f"adaptive > fixed: {self.verdict}. PWMCC {one.stability.mean:.4f} at k {k} against "
            f"{two.stability.mean:.4f} at k {fixed_k}, difference {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] "
            f"({gain.confidence:.0%}, by {gain.method}, {len(one.seeds)} and {len(two.seeds)} fresh seeds); explained "
            f"variance {one.explained_variance:.3f} against {two.explained_variance:.3f}. {self._beyond_chance()}"
        )

    def to_json(self) -> dict[str, Any]:
        """Figures without arrays."""
        return {
            "verdict": self.verdict,
            "conclusion": self.conclusion,
            "floor": self.floor,
            "chosen_k": self.chosen.condition.k,
            "gain": None if self.gain is None else asdict(self.gain),
            "adaptive": self.adaptive.to_json(),
            "fixed": self.fixed.to_json(),
            "search": self.search.to_json(),
        }

    def _beyond_chance(self) -> str:
        lcb = self.adaptive.comparison.lcb
        above = "above" if lcb > 0 else "not above"
        k, candidates = self.chosen.condition.k, sorted(row.condition.k for row in self.search.rows)
        end = ""
        if len(candidates) > 1 and k in (candidates[0], candidates[-1]):
            side = "smallest" if k == candidates[0] else "largest"
            end = f" k {k} is the {side} candidate: beyond it may be better ones."
        return f"At k {k} the dictionaries agree {above} chance (LCB over random ones {lcb:+.4f}).{end}"


def adaptive_l0(
    train_one: TrainOne,
    *,
    d_sae: int,
    fixed_k: int,
    folder: str | Path,
    identity: Mapping[str, Any],
    ks: Sequence[int] = KS,
    floor: float = FLOOR,
    seeds: Sequence[int] = tuple(range(5)),
    epochs: int = 25,
    final_seeds: Sequence[int] = tuple(range(100, 108)),
    final_epochs: int = 40,
    method: Method = "seeds",
    resamples: int = 10_000,
    progress: bool = True,
) -> AdaptiveL0:
    """Choose k on `seeds` and `epochs`, then train it and `fixed_k` anew on `final_seeds` and `final_epochs` and compare.

    The largest LCB over random dictionaries wins among those k whose explained variance is at least `floor`. The final
    seeds must be others than the search's: the best of several is flattered by the seeds that chose it.
    `folder`, `identity`, `method`: as of `run_sweep`; both parts resume.
    Raises FailedPrecondition when no k reaches the floor, InvalidArgument for seeds that are in both.
    """
    both = sorted(set(seeds) & set(final_seeds))
    if both:
        raise InvalidArgument(
            f"seeds {both} are in the search and in the final comparison, which would flatter the chosen k; give others"
        )
    search = run_sweep(
        train_one,
        [Condition(k, d_sae, epochs) for k in ks],
        seeds,
        folder=folder,
        identity=identity,
        method=method,
        resamples=resamples,
        progress=progress,
    )
    chosen = choose(search, floor)
    final = run_sweep(
        train_one,
        [Condition(k, d_sae, final_epochs) for k in dict.fromkeys((chosen.condition.k, fixed_k))],
        final_seeds,
        folder=folder,
        identity=identity,
        method=method,
        resamples=resamples,
        progress=progress,
    )
    adaptive, fixed = final.rows[0], final.rows[-1]
    gain = None
    if adaptive is not fixed:
        gain = difference(adaptive.stability.pairs, fixed.stability.pairs, method, resamples=resamples)
    return AdaptiveL0(search, floor, chosen, adaptive, fixed, gain)


def choose(search: Sweep, floor: float = FLOOR) -> Row:
    """The row with the largest LCB among those that reach the floor; of equals the smaller k.

    Raises FailedPrecondition when none does, InvalidArgument for a floor that is no explained variance.
    """
    if not floor <= 1:
        raise InvalidArgument(f"floor is an explained variance, at most 1; got {floor}")
    good = [row for row in search.rows if row.explained_variance >= floor]
    if not good:
        found = ", ".join(f"k {row.condition.k}: {row.explained_variance:.3f}" for row in search.rows)
        raise FailedPrecondition(
            f"no k reaches an explained variance of {floor:g} ({found}); train longer, or give larger k or d_sae"
        )
    return max(good, key=lambda row: (row.comparison.lcb, -row.condition.k))
