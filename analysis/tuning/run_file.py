"""What made a variant: config, data, circuit, base, code, libraries, time. It lies beside it as run.json."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal

from ...protos.errors import FailedPrecondition
from .config import TuneConfig

__all__ = ["FILE", "TuneRun"]

FILE = "run.json"
_LIBRARIES = ("torch", "transformers", "peft", "accelerate", "numpy", "safetensors")
_WITHOUT_A_SAY = {"checkpoints"}
"""Fields of the config that may differ when a run goes on: the result is the same."""


@dataclass(frozen=True, slots=True)
class TuneRun:
    """One tuning run."""

    config: TuneConfig
    data: Mapping[str, Any]
    """Hash and count of the examples and of the general texts."""
    base: Mapping[str, Any]
    """Folder's config hash, and the model hash where it is known."""
    circuit: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Hash and size; empty without one."""
    pushes: tuple[Mapping[str, Any], ...] = ()
    status: Literal["training", "finished"] = "training"
    steps: int = 0
    seconds: float = 0.0
    """Of the session that ended it."""
    variant_hash: str = ""
    sessions: tuple[Mapping[str, Any], ...] = ()
    """Each start: when, with which libraries and threads."""

    def started(self, earlier: TuneRun | None) -> TuneRun:
        """It is started, or goes on, now and here."""
        session = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "libraries": {name: metadata.version(name) for name in _LIBRARIES},
            "threads": import_module("torch").get_num_threads(),
            "machine": f"{platform.machine()} {platform.system()}, Python {platform.python_version()}",
        }
        return replace(self, sessions=(*(earlier.sessions if earlier else ()), session))

    def write(self, folder: Path) -> None:
        """As run.json, in one step."""
        told: dict[str, Any] = {
            "format": "probewire.tuning",
            "version": 1,
            "status": self.status,
            "steps": self.steps,
            "config": self.config.to_dict(),
            "data": dict(self.data),
            "base": dict(self.base),
            "circuit": dict(self.circuit),
            "pushes": [dict(push) for push in self.pushes],
            "seconds": round(self.seconds, 2),
            "variant_hash": self.variant_hash,
            "sessions": [dict(session) for session in self.sessions],
        }
        beside = folder / f".{FILE}.writing"
        beside.write_text(json.dumps(told, indent=1, allow_nan=False))
        beside.replace(folder / FILE)

    @classmethod
    def read(cls, folder: Path) -> TuneRun | None:
        """That of a folder; None where there is none. Raises FailedPrecondition when it cannot be read."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text())
            if (found["format"], found["version"]) != ("probewire.tuning", 1):
                raise ValueError(f"it has format {found['format']!r}, version {found['version']!r}")
            return cls(
                TuneConfig.from_dict(found["config"]),
                found["data"],
                found["base"],
                found["circuit"],
                tuple(found["pushes"]),
                found["status"],
                int(found["steps"]),
                float(found["seconds"]),
                found["variant_hash"],
                tuple(found["sessions"]),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FailedPrecondition(f"{path} is no run of a tuning: {error}; give another folder") from error

    def require_same(self, other: TuneRun, folder: Path) -> None:
        """Refuse to go on with another run's folder, and name what differs. Raises FailedPrecondition."""
        there, here = self._identity(), other._identity()
        if differing := [name for name in here if there.get(name) != here[name]]:
            said = "; ".join(f"{name} {there.get(name)!r} there, {here[name]!r} here" for name in differing[:4])
            raise FailedPrecondition(f"{folder} holds another run: {said}; give another folder, or what that run had")

    def _identity(self) -> dict[str, Any]:
        config = {name: value for name, value in self.config.to_dict().items() if name not in _WITHOUT_A_SAY}
        more = {"data": dict(self.data), "base": dict(self.base), "circuit": dict(self.circuit)}
        return {**config, **more, "pushes": [dict(push) for push in self.pushes]}
