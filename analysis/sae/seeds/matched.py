"""How much of a stability the data explains without its sparse structure: the same training on controls of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from .cells import Condition, Trained
from .controls import gaussian_like, shuffled
from .resampling import Interval, Method, difference
from .sweeps import Row, run_sweep

__all__ = ["ControlledStability", "Trainer", "matched_controls"]


class Trainer(Protocol):
    """A `TrainOne` that knows its data: `ArrayTrainer` is one."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """What decides the outcome besides condition and seed."""
        ...

    def __call__(self, condition: Condition, seed: int) -> Trained:
        """Train one SAE."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ControlledStability:
    """One condition on the data, and the same on controls."""

    trained: Row
    controls: Mapping[str, Row]
    """By what was done to the data or the training. Explained variance is of the control's own data."""
    differences: Mapping[str, Interval]
    """PWMCC of the trained less that of each control, and of random dictionaries."""

    def table(self) -> str:
        """A markdown table."""
        head = ("dictionaries", "PWMCC", "trained − control", "EV")
        rows = [("trained", str(self.trained.comparison.trained), "", f"{self.trained.explained_variance:.3f}")]
        for name, gap in self.differences.items():
            row = self.controls.get(name)
            found = self.trained.comparison.control if row is None else row.comparison.trained
            shown = "—" if row is None else f"{row.explained_variance:.3f}"
            rows.append((name, str(found), f"{gap.mean:+.4f} [{gap.low:+.4f}, {gap.high:+.4f}]", shown))
        return "\n".join("| " + " | ".join(line) + " |" for line in (head, ("---", "---:", "---:", "---:"), *rows))


def matched_controls(
    activations: NDArray[Any],
    trainer_of: Callable[[NDArray[Any]], Trainer],
    condition: Condition,
    seeds: Sequence[int],
    *,
    folder: str | Path,
    data_seed: int = 0,
    method: Method = "seeds",
    resamples: int = 10_000,
    progress: bool = True,
) -> ControlledStability:
    """Train one condition on the activations [row, d_in] and on their controls, from the same seeds.

    - "untrained": the initial weights of the same SAEs;
    - "shuffled activations": every dimension in an order of its own, so that what dimensions share is gone;
    - "Gaussian": as many rows of a Gaussian with the same mean and covariance, so that only what is not in these is gone;
    - "random dictionaries": directions uniform on the sphere.

    Random dictionaries alone flatter: any training on data that does not fill its space agrees more than they do.
    `trainer_of`: makes the trainer of given rows. `folder`: one folder a control within; resumable as `run_sweep` is.
    """
    folder = Path(folder)
    data = {
        "trained": activations,
        "untrained": activations,
        "shuffled activations": shuffled(activations, data_seed),
        "Gaussian": gaussian_like(activations, data_seed),
    }
    rows: dict[str, Row] = {}
    for name, given in data.items():
        trainer = trainer_of(given)
        one = replace(condition, epochs=0) if name == "untrained" else condition
        rows[name] = run_sweep(
            trainer,
            [one],
            seeds,
            folder=folder / name.split()[0],
            identity=trainer.identity,
            method=method,
            resamples=resamples,
            progress=progress,
        ).rows[0]
    trained = rows.pop("trained")
    others = {name: row.stability for name, row in rows.items()} | {"random dictionaries": trained.random}
    gaps = {
        name: difference(trained.stability.pairs, other.pairs, method, resamples=resamples)
        for name, other in others.items()
    }
    return ControlledStability(trained, rows, gaps)
