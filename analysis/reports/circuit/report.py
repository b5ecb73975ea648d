"""What came of checking a circuit: levels, checks with numbers and bounds, what was not tested, and an exit code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from ..statistics import CONFIDENCE, Figure
from ..verdicts import Check, Verdict, Worse, judged

__all__ = ["LEVELS", "PARTS", "Part", "QaReport", "Untested", "counted"]

Part = Literal["reproduced", "functional", "robust", "interpretability", "safety"]
PARTS: tuple[Part, ...] = ("reproduced", "functional", "robust", "interpretability", "safety")
LEVELS = ("registered", "reproduced", "functional", "robust", "confirmed elsewhere")
NEEDS: dict[int, tuple[Part, ...]] = {1: ("reproduced",), 2: ("functional",), 3: ("robust", "interpretability")}
"""Level → the parts whose every check it needs, beside all levels below it."""


def counted(
    name: str, value: float, bound: float, *, n: int, worse: Worse = "lower", unit: str = "", note: str = ""
) -> Check:
    """A check of a number that has no interval (a p-value, a share of chosen examples): it passes at its bound too."""
    figure = Figure(value, value, value, n, n, CONFIDENCE, 0, 0.0)
    slack = 1e-9 if worse == "higher" else -1e-9
    return judged(name, figure, bound + slack, worse=worse, unit=unit, note=note)


@dataclass(frozen=True, slots=True)
class Untested:
    """A check that could not be made. It is no pass: a level that needs it is not reached."""

    name: str
    why: str


@dataclass(frozen=True, slots=True, eq=False)
class QaReport:
    """All checks of a circuit, by part."""

    circuit: str
    """Its id."""
    name: str
    checks: Mapping[Part, tuple[Check, ...]]
    untested: Mapping[Part, tuple[Untested, ...]]
    facts: Mapping[str, Any]
    """Numbers without a bound: size, hooks, speed, curves, contexts."""
    about: Mapping[str, Any]
    """Model, its hash, backend, dtype, task, ablation, seeds, counts, versions."""
    confirmed_by: tuple[str, ...] = ()
    """Reports of level 3 from another backend or somebody else, on the circuit's card."""
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def verdict(self, part: Part) -> Verdict:
        """Fail where a check fails; else inconclusive where one is, or where any was not made; else pass."""
        found = {check.verdict for check in self.checks.get(part, ())}
        if "fail" in found:
            return "fail"
        return "pass" if found == {"pass"} and not self.untested.get(part) else "inconclusive"

    @property
    def level(self) -> int:
        """The highest level all of whose needs, and those of the levels below, are met: 0 to 4 (LEVELS)."""
        reached = 0
        for level in sorted(NEEDS):
            parts: tuple[Part, ...] = NEEDS[level]
            if any(self.verdict(part) != "pass" for part in parts):
                return reached
            reached = level
        return 4 if self.confirmed_by else reached

    def reaches(self, level: int) -> Verdict:
        """Whether a level is reached: fail where a check of it or of one below fails, inconclusive where none does."""
        if self.level >= level:
            return "pass"
        needed: list[Part] = [part for at, parts in NEEDS.items() if at <= level for part in parts]
        return "fail" if any(self.verdict(part) == "fail" for part in needed) else "inconclusive"

    def exit_code(self, level: int = 2, *, allow_inconclusive: bool = False) -> int:
        """0 pass, 1 fail, 3 inconclusive; a failed safety check is a fail at every level."""
        if self.verdict("safety") == "fail":
            return 1
        return {"pass": 0, "fail": 1, "inconclusive": 0 if allow_inconclusive else 3}[self.reaches(level)]

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "format": "probewire.circuit_qa",
            "version": 1,
            "circuit": self.circuit,
            "name": self.name,
            "level": self.level,
            "time": self.time,
            "about": dict(self.about),
            "parts": {
                part: {
                    "verdict": self.verdict(part),
                    "checks": [check.to_json() for check in self.checks.get(part, ())],
                    "not_tested": [{"name": one.name, "why": one.why} for one in self.untested.get(part, ())],
                }
                for part in PARTS
            },
            "facts": dict(self.facts),
            "confirmed_by": list(self.confirmed_by),
        }

    @property
    def sha256(self) -> str:
        """Of its JSON."""
        return sha256(json.dumps(self.to_json(), sort_keys=True, ensure_ascii=False).encode()).hexdigest()

    def entry(self, who: str = "") -> dict[str, Any]:
        """What a circuit's card keeps of it (`CircuitLibrary.record`)."""
        figures = {check.name: check.figure.value for part in PARTS for check in self.checks.get(part, ())}
        kept = {key: self.about.get(key, "") for key in ("backend", "model_hash")}
        return {
            "time": self.time,
            "level": self.level,
            "verdict": {part: self.verdict(part) for part in PARTS},
            "figures": figures,
            "sha256": self.sha256,
            "who": who,
            **kept,
        }

    def save(self, path: str | Path) -> Path:
        """Write `to_json` to a file."""
        path = Path(path)
        path.write_text(json.dumps(self.to_json(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        return path

    def __repr__(self) -> str:
        lines = [f"{self.name or self.circuit}: level {self.level} ({LEVELS[self.level]})"]
        for part in PARTS:
            lines.append(f"  {part}: {self.verdict(part)}")
            lines += [f"    {check}" for check in self.checks.get(part, ())]
            lines += [f"    not tested: {one.name}: {one.why}" for one in self.untested.get(part, ())]
        return "\n".join(lines)
