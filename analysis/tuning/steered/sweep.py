"""A sweep of steered tuning: arms × amounts × epochs × seeds, stored prompt by prompt, and what it comes to by rules fixed beforehand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from ....clients.progress import progress_bar
from ....protos.errors import FailedPrecondition, InvalidArgument
from ..base import Base
from ..config import TuneConfig
from ..pushes import Push, pushed
from ..tuning import prepared
from .arms import Arm, Neuron, arm_config, arm_pushes, mask_shares, matched_neurons
from .association import Association
from .steered_run import measured, predicted, steered_run
from .sweep_rows import Row, Sweep

__all__ = ["AMOUNTS", "read_sweep", "run_sweep"]

AMOUNTS: Mapping[Arm, tuple[float, ...]] = {
    "A": (0.0,),
    "B": (3.0, -3.0, 10.0, -10.0, 30.0, -30.0),
    "C": (3.0, -3.0, 10.0, -10.0, 30.0, -30.0),
    "D": (10.0, -10.0),
    "E": (3.0, 10.0),
    "F": (0.0,),
    "G": (0.0,),
    "H": (10.0,),
}
"""In units of the neuron's strong value; of E the factor is 1 + amount."""
_SWEEP, _ROWS, _BASE = "sweep.json", "rows.jsonl", "base.json"
Which = Literal["choose", "report"]
WHICH: tuple[Which, ...] = ("choose", "report")


@dataclass(frozen=True, slots=True)
class _Run:
    arm: Arm
    amount: float
    control: int
    """Which of the matched neurons, of arm C; 0 of others."""
    seed: int


def run_sweep(
    base: Base,
    association: Association,
    neuron: Neuron,
    folder: str | Path,
    config: TuneConfig,
    *,
    amounts: Mapping[Arm, Sequence[float]] = AMOUNTS,
    epochs: Sequence[int] = (5, 10, 20, 30),
    seeds: Sequence[int] = (0, 1, 2),
    controls: int = 3,
    progress: bool = True,
) -> Sweep:
    """Every arm of `amounts`, the same data, steps and seeds for each; killed, it goes on with the runs that are missing.

    `config`: of one run; its method, seed and rate are the arm's. C is run with each of `controls` matched neurons; F stops
    when its KL on neutral texts reaches the largest that B's runs of the seed had, so B comes before it.
    Raises FailedPrecondition for a folder of another sweep, InvalidArgument for F without B.
    """
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    if "F" in amounts and "B" not in amounts:
        raise InvalidArgument("arm F is stopped at arm B's KL; sweep B too")
    if not epochs or min(epochs) < 1 or not seeds or len(set(seeds)) != len(seeds):
        raise InvalidArgument(f"epochs are 1 or more and seeds distinct, at least one each; got {epochs}, {seeds}")
    others = matched_neurons(base, association.choose["target"], neuron, n=controls)
    _same(root, association, neuron, others, config, epochs)
    before: dict[Which, Any] = {which: measured(base, association, which) for which in WHICH}
    (root / _BASE).write_text(json.dumps({which: _plain(found) for which, found in before.items()}))
    runs = [
        _Run(arm, amount, control, seed)
        for seed in seeds
        for arm in sorted(amounts)
        for amount in amounts[arm]
        for control in range(controls if arm == "C" else 1)
        if not (arm == "G" and seed != seeds[0])
    ]
    done = {(_Run(row.arm, row.amount, row.control, row.seed)) for row in _read(root) if row.last}
    with progress_bar("steered sweep", "steps", show=progress) as bar, (root / _ROWS).open("a") as file:
        for index, run in enumerate(runs):
            if run not in done:
                control = others[run.control] if run.arm == "C" else None
                pushes = arm_pushes(run.arm, run.amount, neuron, control)
                limit = _largest_kl(root, run.seed) if run.arm == "F" else None
                # A run's lines are written together, so that one which was killed leaves none.
                lines = list(_rows(base, association, config, run, pushes, epochs, before, limit))
                file.write("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))
                file.flush()
            bar(index + 1, len(runs))
    return read_sweep(root)


def read_sweep(folder: str | Path) -> Sweep:
    """As far as it has come; every figure is computed anew from the prompts' own. Raises FailedPrecondition for no sweep."""
    root = Path(folder)
    if not (root / _SWEEP).is_file() or not (root / _BASE).is_file():
        raise FailedPrecondition(f"{root} holds no sweep; run_sweep makes one")
    before = {which: _arrays(found) for which, found in json.loads((root / _BASE).read_text()).items()}
    return Sweep(tuple(_read(root)), before)


def _rows(
    base: Base,
    association: Association,
    config: TuneConfig,
    run: _Run,
    pushes: Sequence[Push],
    epochs: Sequence[int],
    before: Mapping[Which, Any],
    limit: float | None,
) -> Iterator[dict[str, Any]]:
    """A line for each of the epochs that were asked for."""
    told: dict[str, Any] = {**asdict(run), "said": mask_shares(base, pushes, association)}
    if run.arm == "G":
        with pushed(base, pushes):
            yield told | {"epochs": 0, "last": True} | _after(base, association, before)
        return
    own = arm_config(run.arm, config.with_(steps=max(epochs)), run.seed)
    told["said"] |= _predicted(base, association, own, pushes)

    def enough() -> bool:
        return limit is not None and measured(base, association, "choose", before["choose"])["neutral:kl"] >= limit

    until = enough if limit is not None else None
    held: dict[str, Any] | None = None
    for epoch, _ in steered_run(base, association, own, pushes, epochs, until):
        if held is not None:
            yield held | {"last": False}
        held = told | {"epochs": epoch} | _after(base, association, before)
    if held is not None:
        yield held | {"last": True}


def _after(base: Base, association: Association, before: Mapping[Which, Any]) -> dict[str, Any]:
    return {which: _plain(measured(base, association, which, before[which])) for which in WHICH}


def _predicted(base: Base, association: Association, config: TuneConfig, pushes: Sequence[Push]) -> dict[str, float]:
    objective = prepared(base, config, pushes=pushes)
    try:
        return predicted(objective, association)
    finally:
        if objective.pushes is not None:
            objective.pushes.remove()
        if objective.adapter is not None:
            objective.adapter.model.unload()


def _same(
    root: Path,
    association: Association,
    neuron: Neuron,
    others: Sequence[Neuron],
    config: TuneConfig,
    epochs: Sequence[int],
) -> None:
    """The folder is of this sweep, or of none yet. More arms, amounts and seeds may be added to it."""
    data = sha256(repr(association).encode()).hexdigest()
    told = {
        "config": config.to_dict(),
        "epochs": list(epochs),
        "neuron": asdict(neuron),
        "controls": [asdict(one) for one in others],
        "association": data,
    }
    path = root / _SWEEP
    if path.is_file():
        there = json.loads(path.read_text())
        if differing := [name for name in told if there.get(name) != json.loads(json.dumps(told[name]))]:
            raise FailedPrecondition(f"{root} holds a sweep of another {', '.join(differing)}; give another folder")
    else:
        path.write_text(json.dumps(told, indent=1, allow_nan=False))


def _largest_kl(root: Path, seed: int) -> float:
    return max(float(row.after["choose"]["neutral:kl"]) for row in _read(root) if row.arm == "B" and row.seed == seed)


def _read(root: Path) -> list[Row]:
    path = root / _ROWS
    lines = path.read_text().splitlines() if path.is_file() else []
    found: list[Row] = []
    for line in map(json.loads, lines):
        after = {which: _arrays(line.pop(which)) for which in WHICH}
        found.append(Row(after=after, **line))
    return found


def _plain(found: Mapping[str, Any]) -> dict[str, Any]:
    """Without the logits, which are kept for comparisons alone."""
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in found.items()
        if name != "neutral:logits"
    }


def _arrays(found: Mapping[str, Any]) -> dict[str, Any]:
    """Lists as arrays, numbers as they are."""
    arrays: dict[str, Any] = {}
    for name, value in found.items():
        arrays[name] = np.array(cast("list[float]", value)) if isinstance(value, list) else value
    return arrays
