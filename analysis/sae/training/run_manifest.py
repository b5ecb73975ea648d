"""What made an SAE: config, data, code, libraries, time. It lies beside the weights as run.json."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal

from ....protos.errors import FailedPrecondition
from ..model.configs import TrainConfig
from .checkpoints import write_json

__all__ = ["RunManifest", "code_version", "library_versions"]

FILE = "run.json"
_LIBRARIES = ("torch", "sae-lens", "numpy", "safetensors")
_WITHOUT_A_SAY = {"checkpoints"}
"""Fields of the config that may differ when a run goes on: the weights are the same."""
_OF_THE_DATA = ("kind", "data_hash", "model_hash", "site")


@dataclass(frozen=True, slots=True)
class RunManifest:
    """One training run of one SAE."""

    config: TrainConfig
    d_in: int
    data: Mapping[str, Any]
    """`Batches.manifest`."""
    status: Literal["training", "finished"] = "training"
    steps: int = 0
    """Steps done when it was written: 0 until the first checkpoint."""
    wall_seconds: float = 0.0
    """Over all sessions, without what a kill lost."""
    final: Mapping[str, float | None] = field(default_factory=dict[str, "float | None"])
    """The last point of the curves."""
    weights_sha256: str = ""
    """Of sae_weights.safetensors."""
    sessions: tuple[Mapping[str, Any], ...] = ()
    """Each start: when, after which step, by which code, with which libraries."""
    added_loss: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Name and note of a term that was added to sae-lens's loss; empty where none was."""

    @property
    def data_hash(self) -> str:
        """What the data calls itself; else a hash of its manifest."""
        found = self.data.get("data_hash")
        return str(found) if found else hashlib.sha256(json.dumps(dict(self.data), sort_keys=True).encode()).hexdigest()

    def with_session(self, step: int) -> RunManifest:
        """It is started, or goes on after `step` steps, now and here."""
        session = {
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "after_step": step,
            **code_version(),
            "libraries": library_versions(),
            "threads": import_module("torch").get_num_threads(),
            "machine": f"{platform.machine()} {platform.system()}, Python {platform.python_version()}",
        }
        return replace(self, sessions=(*self.sessions, session))

    def write(self, folder: Path) -> None:
        """As run.json, in one step."""
        last: Mapping[str, Any] = self.sessions[-1] if self.sessions else {}
        write_json(
            folder / FILE,
            {
                "format": 1,
                "status": self.status,
                "steps": self.steps,
                "seed": self.config.seed,
                "data_hash": self.data_hash,
                "probewire_version": last.get("probewire_version"),
                "git_commit": last.get("git_commit"),
                "libraries": last.get("libraries"),
                "d_in": self.d_in,
                "config": self.config.to_dict(),
                "added_loss": dict(self.added_loss),
                "data": dict(self.data),
                "wall_seconds": round(self.wall_seconds, 3),
                "final": dict(self.final),
                "weights_sha256": self.weights_sha256,
                "sessions": [dict(session) for session in self.sessions],
            },
        )

    @classmethod
    def read(cls, folder: Path) -> RunManifest | None:
        """That of a folder; None where there is none. Raises FailedPrecondition when it cannot be read."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            found = json.loads(path.read_text())
            return cls(
                TrainConfig.from_dict(found["config"]),
                int(found["d_in"]),
                found["data"],
                found["status"],
                int(found["steps"]),
                float(found["wall_seconds"]),
                found["final"],
                found["weights_sha256"],
                tuple(found["sessions"]),
                found["added_loss"],
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FailedPrecondition(f"{path} is no manifest of a training run: {error}") from error

    def require_same(self, other: RunManifest, folder: Path) -> None:
        """Refuse to go on with another run's folder: names what differs. Raises FailedPrecondition."""
        there, here = self._identity(), other._identity()
        differing = [name for name in here if there.get(name) != here[name]]
        if differing:
            said = "; ".join(f"{name} {there.get(name)!r} there, {here[name]!r} here" for name in differing)
            raise FailedPrecondition(f"{folder} holds another run: {said}; give another folder, or what that run had")

    def _identity(self) -> dict[str, Any]:
        """What decides the weights."""
        config = {name: value for name, value in self.config.to_dict().items() if name not in _WITHOUT_A_SAY}
        own = {"d_in": self.d_in, "added_loss": dict(self.added_loss)}
        return {**config, **own, **{f"data's {name}": self.data.get(name) for name in _OF_THE_DATA}}


def code_version() -> dict[str, Any]:
    """probewire's version, and in a checkout the commit and whether files differ from it."""
    try:
        version = metadata.version("probewire")
    except metadata.PackageNotFoundError:
        version = "0+source"
    root = Path(__file__).resolve().parents[3]
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    changed = bool(_git(root, "status", "--porcelain")) if commit else None
    return {"probewire_version": version, "git_commit": commit, "git_changed": changed}


def library_versions() -> dict[str, str]:
    """Of what the weights depend on."""
    return {name: metadata.version(name) for name in _LIBRARIES}


def _git(root: Path, *arguments: str) -> str | None:
    """What git says; None where there is no git, or it will not say."""
    try:
        # Without optional locks: a training that starts must not meddle with someone's commit.
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *arguments],  # noqa: S607 - the user's own git
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
