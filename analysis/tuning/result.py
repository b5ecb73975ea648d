"""What a run comes to: deltas, hooks, and a manifest that says how they were made."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ...clients import Affine, Delta, Hook, Plan, Tensor, Where
from ...protos.variants.manifest import Base as BaseModel, Manifest
from .config import TuneConfig
from .objective import Objective
from .run_file import TuneRun

__all__ = ["deltas_of", "hooks_of", "manifest_of"]


def deltas_of(objective: Objective) -> dict[str, Delta]:
    """Weight name → its delta; those that stayed 0 are left out."""
    if objective.adapter is None:
        return {}
    return {name: Delta(a, b) for name, (a, b) in objective.adapter.deltas().items() if a.any() and b.any()}


def hooks_of(objective: Objective) -> Plan:
    """ReFT's: `affine` at resid_post, at the first and last tokens of the prompt; none of other methods."""
    reft = objective.reft
    if reft is None:
        return Plan()
    first, last = objective.config.positions
    positions = (*range(first), *range(-last, 0))
    return Plan(
        tuple(
            Hook(
                f"resid_post.{layer}",
                Affine(Tensor.of(a), Tensor.of(b), Tensor.of(c)),
                where=Where(positions=positions, phase="prompt"),
            )
            for layer, (a, c, b) in reft.affine().items()
        )
    )


def manifest_of(config: TuneConfig, base: BaseModel, run: TuneRun, name: str, metrics: Mapping[str, Any]) -> Manifest:
    """Method, options, data and time; no texts."""
    session = run.sessions[-1]
    return Manifest(
        name=name,
        base=base,
        method=config.method,
        options={key: value for key, value in config.to_dict().items() if key != "method"}
        | ({"pushes": [dict(push) for push in run.pushes]} if run.pushes else {}),
        circuit=run.circuit,
        data=run.data,
        metrics=metrics,
        made={
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "libraries": session["libraries"],
            "backend": "torch",
            "device": config.device,
        },
    )
