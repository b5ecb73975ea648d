"""Before: what a variant may break, told from its factors, from gradients of the base, and from a dry run that nobody else sees."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...clients import Client
from ...protos.errors import InvalidArgument
from ...protos.variants.variant import Variant
from ..circuits import Circuit
from ..datasets import load_set
from ..tasks import FittedTask
from .base_weights import base_matrix, size_of
from .first_order import activation_change, first_order, weight_sites
from .levels import Level, RiskRow, level_of, worst
from .measures import divergence
from .overlaps import circuit_overlaps, conflicts
from .probes import clusters_of, differences, shipped_probes
from .report_files import FORMAT_VERSION, saved
from .statistics import measured, paired, wilson
from .subject import Subject
from .tried import tried

__all__ = ["RiskReport", "assess"]

PROBES = 32
"""Examples of each shipped task."""
SCALES = (0.25, 0.5, 0.75, 1.0)
CURVE_PROMPTS = 16
SHOWN_WORST = 5


@dataclass(frozen=True, slots=True, eq=False)
class RiskReport:
    """Nothing was applied for anybody: every figure is of the base, or of a private dry run."""

    rows: tuple[RiskRow, ...]
    level: Level
    set_by: RiskRow | None
    """The row that the level is of."""
    about: Mapping[str, Any]
    """Base, variant, seed, seconds, data sets."""
    sections: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """size, activation, first_order, circuits, dry_run, interactions, reversibility, mitigations, not_tested."""

    def to_json(self) -> dict[str, Any]:
        """Plain data, as risk.json holds it."""
        return {
            "format": "probewire.risk",
            "version": FORMAT_VERSION,
            **self.about,
            "level": self.level,
            "set_by": None if self.set_by is None else self.set_by.to_json(),
            "rows": [row.to_json() for row in self.rows],
            **self.sections,
        }

    def save(self, folder: str | Path, *, texts: bool = True) -> Path:
        """Write risk.json and risk.html into a folder; `texts` False: prompts are left out of both. Gives the folder."""
        return saved("risk", self.to_json(), Path(folder), texts=texts)

    def __repr__(self) -> str:
        why = (
            "" if self.set_by is None else f", set by {self.set_by.part} of {self.set_by.of} ({self.set_by.value:.3g})"
        )
        return f"RiskReport({self.level}{why}; {len(self.rows)} rows)"


def assess(
    client: Client,
    variant: Variant,
    *,
    probes: Mapping[str, FittedTask] | None = None,
    circuits: Sequence[Circuit] = (),
    general: Sequence[str] | None = None,
    beside: Mapping[str, Variant] | None = None,
    dry_run: bool = True,
    seed: int = 0,
    progress: bool = True,
    model: str = "",
) -> RiskReport:
    """What `variant` may break on a model. `probes`: name → fitted task (default: 32 examples of each shipped one).

    `general`: texts on which nothing should change (default: the set `general`). `beside`: variants that it is to be used
    with. Raises what `load_variant` raises, FailedPrecondition where scipy is missing.
    """
    began = time.perf_counter()
    info = client.describe(model)
    texts = [str(row["text"]) for row in load_set("general").data["texts"]] if general is None else list(general)
    if not texts:
        raise InvalidArgument("general needs at least one text")
    tasks = shipped_probes(client, n=PROBES, model=model) if probes is None else dict(probes)
    parts = _Parts(client, variant, tasks, tuple(texts), seed, progress, model)
    sizes = {
        name: size_of(delta, base_matrix(client, info, name, model=model)) for name, delta in variant.deltas.items()
    }
    rows, sections = list[RiskRow](), dict[str, Any]({"size": sizes})
    sections["activation"] = parts.activation(rows)
    predicted = parts.predicted(rows)
    sections["circuits"] = parts.circuits(rows, circuits)
    if dry_run:
        with tried(client, variant, model=model) as subject:
            sections["dry_run"] = parts.dry_run(rows, subject, predicted)
    sections["first_order"] = {name: one["told"] for name, one in predicted.items()}
    sections["interactions"] = [_plain(one) for one in conflicts(variant, beside or {})]
    sections["reversibility"] = f"leave it out of the request; of a merged copy the base is {info.model_hash}"
    decided = worst(rows)
    sections["mitigations"] = _mitigations(rows, variant, sections)
    sections["not_tested"] = _not_tested(variant, parts.left_out, circuits, dry_run)
    about = {
        "base": {"id": info.id, "model_hash": info.model_hash, "dtype": info.dtype},
        "variant": {"name": variant.manifest.name, "hash": variant.hash},
        "seed": seed,
        "seconds": round(time.perf_counter() - began, 2),
        "probes": {name: {"n": len(task), "dropped": dict(task.dropped)} for name, task in tasks.items()},
        "general": {"n": len(texts)},
    }
    return RiskReport(tuple(rows), "low" if decided is None else decided.level, decided, about, sections)


@dataclass(slots=True)
class _Parts:
    client: Client
    variant: Variant
    tasks: Mapping[str, FittedTask]
    texts: tuple[str, ...]
    seed: int
    progress: bool
    model: str
    left_out: tuple[str, ...] = ()

    def activation(self, rows: list[RiskRow]) -> dict[str, float]:
        if not self.variant.deltas:
            return {}
        found, self.left_out = activation_change(self.client, self.variant, self.texts[:32], model=self.model)
        if found:
            name = max(found, key=lambda one: found[one])
            value = found[name]
            rows.append(RiskRow("activation change", name, value, level_of("activation change", value), "share"))
        return found

    def predicted(self, rows: list[RiskRow]) -> dict[str, dict[str, Any]]:
        """Each probe's predicted change, in standard errors of its own mean."""
        info = self.client.describe(self.model)
        if not weight_sites(info, tuple(self.variant.deltas))[0]:
            return {}
        found: dict[str, dict[str, Any]] = {}
        for name, task in self.tasks.items():
            base = differences([Subject(self.client, self.model)], task)[0]
            first = first_order(self.client, self.variant, task, progress=self.progress)
            noise = float(base.std(ddof=1) / np.sqrt(len(base))) if len(base) > 1 else float("nan")
            change = float(first.change.mean())
            drop = -change / noise if noise > 0 else float("nan")
            rows.append(RiskRow("predicted drop", name, drop, level_of("predicted drop", drop), "standard errors"))
            told = {
                "change": change,
                "standard_error": noise,
                "left_out": list(first.left_out),
                "base": float(base.mean()),
            }
            found[name] = {"told": told, "change": first.change}
        return found

    def circuits(self, rows: list[RiskRow], circuits: Sequence[Circuit]) -> list[dict[str, Any]]:
        found = circuit_overlaps(self.client, self.variant, circuits, model=self.model)
        part = "circuit overlap"
        rows += [RiskRow(part, one.circuit, one.share, level_of(part, one.share), "share") for one in found]
        return [_plain(one) for one in found]

    def dry_run(self, rows: list[RiskRow], subject: Subject, predicted: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        values = divergence(subject, self.texts, label="dry run", progress=self.progress)
        kl = measured(values, seed=self.seed)
        rows.append(RiskRow("general KL", f"{len(values)} texts", kl.value, level_of("general KL", kl.value), "nats"))
        order = np.argsort(-values)[:SHOWN_WORST]
        worst_texts = [{"index": int(i), "kl": float(values[i]), "text": self.texts[int(i)]} for i in order]
        found: dict[str, Any] = {
            "kl": {
                **kl.to_json(),
                "p95": _finite(np.quantile(values, 0.95)),
                "values": [_finite(v) for v in values],
                "worst": worst_texts,
            },
            "probes": {name: self._probe(rows, name, subject, predicted.get(name)) for name in self.tasks},
            "curve": _curve(subject, self.texts[:CURVE_PROMPTS]),
        }
        return found

    def _probe(self, rows: list[RiskRow], name: str, subject: Subject, predicted: Any) -> dict[str, Any]:
        task = self.tasks[name]
        base, changed = differences([subject.base, subject], task, progress=self.progress)
        figure = paired(base, changed, clusters=clusters_of(task), seed=self.seed)
        before, after = (int((values > 0).sum()) for values in (base, changed))
        lost = wilson(after, len(changed))[0] <= 0.5 < wilson(before, len(base))[0]
        if lost or not np.isfinite(changed).all():
            rows.append(RiskRow("at chance", name, after / len(changed), "critical", "share right"))
        found: dict[str, Any] = {"difference": figure.to_json(), "right": [before, after], "n": len(base)}
        if predicted is not None and len(base) > 2:
            found["agreement"] = _finite(_correlation(predicted["change"], changed - base))
        return found


def _curve(subject: Subject, texts: Sequence[str]) -> list[dict[str, float | None]] | None:
    """General KL at a part of the strength: what less of it would cost."""
    try:
        return [{"scale": s, "kl": _finite(divergence(subject.scaled(s), texts).mean())} for s in SCALES]
    except InvalidArgument:  # a hook without a strength
        return None


def _correlation(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
    return float(np.corrcoef(one, two)[0, 1]) if one.std() > 0 and two.std() > 0 else float("nan")


def _mitigations(rows: Sequence[RiskRow], variant: Variant, sections: Mapping[str, Any]) -> list[str]:
    raised = {row.part for row in rows if row.level != "low"}
    found: list[str] = []
    curve = sections.get("dry_run", {}).get("curve")
    if "general KL" in raised and curve:
        shown = ", ".join(f"{one['kl']:.3g} at {one['scale']}" for one in curve if one["kl"] is not None)
        found.append(f"use it at a lower scale: general KL is {shown}")
    if raised & {"general KL", "activation change"}:
        found.append("make the edit again with preserve keys of general texts, or gate it by a condition")
    if len({name.rpartition(".")[2] for name in variant.deltas}) > 1 and raised:
        found.append("fewer layers: `variant.only(…)`, and look at `size` for those that change most")
    if "circuit overlap" in raised:
        found.append(
            "confine it to weights outside the circuits that it meets (`WeightMask`), or to heads that they do not hold"
        )
    return found


def _not_tested(variant: Variant, left_out: Sequence[str], circuits: Sequence[Circuit], dry_run: bool) -> list[str]:
    found = [f"prediction at {name}: no site is at it" for name in left_out]
    if variant.plan.hooks:
        found.append(f"prediction of {len(variant.plan.hooks)} hooks: only the dry run has them")
    if not circuits:
        found.append("circuits: none were given")
    if not dry_run:
        found.append("the dry run: it was turned off")
    return [*found, "texts of other kinds and languages, long contexts, sampling at a temperature"]


def _plain(one: Any) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__dataclass_fields__}


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
