"""Finished trainings of a sweep on the disk: a JSON line each, so that a sweep that was stopped goes on."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from ....protos.errors import FailedPrecondition, InvalidArgument
from ..model.loaded import load

__all__ = ["Cells", "Condition", "TrainOne", "Trained", "decoder_of"]

Floats = NDArray[np.float32]

_LEDGER, _DECODERS, _LOCK = "cells.jsonl", "decoders", ".lock"


@dataclass(frozen=True, slots=True, order=True)
class Condition:
    """What is varied between trainings, apart from the seed."""

    k: int
    """Latents active a row."""
    d_sae: int
    epochs: int
    """Passes over the data; 0: the SAE stays as it was initialised, for the untrained control."""

    def __post_init__(self) -> None:
        whole = all(type(value) is int for value in (self.k, self.d_sae, self.epochs))
        if not whole or not 1 <= self.k <= self.d_sae or self.epochs < 0:
            raise InvalidArgument(
                f"a condition has whole numbers 1 ≤ k ≤ d_sae and epochs of 0 or more, got k {self.k}, d_sae "
                f"{self.d_sae}, epochs {self.epochs}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """What a training gives."""

    decoder: Floats | Path
    """[d_sae, d_in], or the folder of the SAE."""
    explained_variance: float
    """1 − Σ‖x − x̂‖² / Σ‖x − x̄‖² on rows that were not trained on (`scores.ExplainedVariance`)."""
    l0: float | None = None
    """Latents that fire a row, on the same rows."""
    alive: float | None = None
    """Share of latents that fire on any of those rows."""


TrainOne = Callable[[Condition, int], Trained]
"""Trains one SAE: what is varied, and the seed of its weights and of the order of its rows."""


class Cells:
    """A folder of finished trainings: cells.jsonl, and decoders/ of those that came as arrays.

    The first line says what all of them share (the data's hash, the rate of learning, …); a folder of something else is
    refused. The ledger is replaced as a whole by a rename, so that it is never torn; one process holds it at a time.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity = json.loads(json.dumps(dict(identity)))
        (folder / _DECODERS).mkdir(parents=True, exist_ok=True)
        self._found = self._read()

    @classmethod
    @contextmanager
    def open(cls, folder: str | Path, identity: Mapping[str, Any]) -> Generator[Cells]:
        """Hold a folder. Raises FailedPrecondition when another process does, or it belongs to other data."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / _LOCK, timeout=0)
        try:
            with lock:
                yield cls(folder, identity)
        except Timeout:
            raise FailedPrecondition(
                f"another sweep is at work in {folder}; wait for it or give another folder"
            ) from None

    def __len__(self) -> int:
        return len(self._found)

    def get(self, condition: Condition, seed: int) -> Trained | None:
        """What was finished before, if it was. Raises FailedPrecondition when its decoder is gone or has changed."""
        found = self._found.get((condition, seed))
        if found is None:
            return None
        where = self.folder / found["decoder"]  # an absolute path stays as it is
        file = where / "sae_weights.safetensors" if where.is_dir() else where
        if not file.is_file() or _sha256(file) != found["sha256"]:
            raise FailedPrecondition(
                f"{file} is gone or is not what {self.folder / _LEDGER} notes for {condition} and seed {seed}; delete "
                "that line to train it anew"
            )
        decoder: Floats | Path = where if where.is_dir() else np.load(where)
        return Trained(decoder, found["explained_variance"], found["l0"], found["alive"])

    def put(self, condition: Condition, seed: int, trained: Trained) -> None:
        """Note a finished training, its decoder first. Raises InvalidArgument for one that cannot be right."""
        _check(condition, trained)
        if isinstance(trained.decoder, Path):
            place, file = str(trained.decoder.resolve()), trained.decoder / "sae_weights.safetensors"
        else:
            place = f"{_DECODERS}/k{condition.k}-d{condition.d_sae}-e{condition.epochs}-s{seed}.npy"
            file = self.folder / place
            _replace(file, lambda part: _save(part, np.asarray(trained.decoder, dtype=np.float32)))
        self._found[condition, seed] = {
            **asdict(condition),
            "seed": seed,
            "explained_variance": trained.explained_variance,
            "l0": trained.l0,
            "alive": trained.alive,
            "decoder": place,
            "sha256": _sha256(file),
        }
        lines = [{"identity": self.identity}, *self._found.values()]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        _replace(self.folder / _LEDGER, lambda part: _write(part, text))

    def _read(self) -> dict[tuple[Condition, int], dict[str, Any]]:
        ledger = self.folder / _LEDGER
        if not ledger.is_file():
            return {}
        try:
            first, *rest = [json.loads(line) for line in ledger.read_text().splitlines()]
            identity = first["identity"]
            cells = {(Condition(row["k"], row["d_sae"], row["epochs"]), int(row["seed"])): row for row in rest}
        except (ValueError, KeyError, TypeError) as error:
            raise FailedPrecondition(f"{ledger} is not a ledger of a sweep ({error}); give another folder") from None
        if identity != self.identity:
            differs = sorted(key for key in {*identity, *self.identity} if identity.get(key) != self.identity.get(key))
            raise FailedPrecondition(
                f"{ledger} is of another sweep: {', '.join(differs)} differ (there {[identity.get(k) for k in differs]}, "
                f"here {[self.identity.get(k) for k in differs]}); give another folder"
            )
        return cells


def decoder_of(trained: Trained) -> Floats:
    """[d_sae, d_in], read from the folder where it lies in one."""
    return load(trained.decoder).w_dec if isinstance(trained.decoder, Path) else np.asarray(trained.decoder, np.float32)


def _check(condition: Condition, trained: Trained) -> None:
    rows = decoder_of(trained)
    if rows.ndim != 2 or len(rows) != condition.d_sae or not np.isfinite(rows).all():
        raise InvalidArgument(
            f"the training of {condition} gave a decoder of shape {list(rows.shape)}; it must be [{condition.d_sae}, "
            "d_in] of finite numbers"
        )
    if not math.isfinite(trained.explained_variance) or trained.explained_variance > 1:
        raise InvalidArgument(
            f"the training of {condition} gave an explained variance of {trained.explained_variance}; it is at most 1"
        )


def _replace(path: Path, write: Callable[[Path], None]) -> None:
    """Write beside, then rename: whoever reads sees all of it or none."""
    part = path.with_name(path.name + ".part")
    write(part)
    part.replace(path)


def _save(part: Path, rows: Floats) -> None:
    with part.open("wb") as file:
        np.save(file, rows)
        file.flush()
        os.fsync(file.fileno())


def _write(part: Path, text: str) -> None:
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
