"""Writing a store: rows in, whole shards out, and after any crash a store that can be gone on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import FailedPrecondition, InvalidArgument
from ....protos.tensors import FLOAT_DTYPES, numpy_dtype
from .rows import Rows, joined, row_norms
from .shards import ShardFile, write_json, write_shard

__all__ = ["FORMAT", "MANIFEST", "StoreWriter", "default_rows_per_shard"]

FORMAT = "probewire activations 1"
MANIFEST = "manifest.json"
SHARD_BYTES = 32 << 20
_PLACES = ("token_ids", "positions", "documents", "offsets")


def default_rows_per_shard(d_in: int, dtype: str) -> int:
    """As many rows as fill 32 MiB."""
    return max(1, SHARD_BYTES // (d_in * numpy_dtype(dtype).itemsize))


class StoreWriter:
    """Appends rows to a store. A shard is written when it is full; `finish` writes the last one and the statistics.

    The manifest is replaced after each shard, so that what it names is on the disk. Opened on a folder that has a
    store of the same `identity`, it goes on where that ended: `cursor` says from where to give rows again. A last,
    shorter shard of a finished store is taken away first, so that more tokens give what one longer run would have given.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        d_in: int,
        dtype: str,
        model_hash: str,
        site: str,
        rules: Sequence[Mapping[str, Any]] = (),
        rows_per_shard: int | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        """`rules`: what `Rows.rules` counts, as data. `identity`: what else must be the same to go on.

        Raises FailedPrecondition where the folder holds a store of something else, or other files and no store.
        """
        if dtype not in FLOAT_DTYPES:
            raise InvalidArgument(f"a store holds {', '.join(FLOAT_DTYPES)}, not {dtype!r}")
        rows_per_shard = default_rows_per_shard(d_in, dtype) if rows_per_shard is None else rows_per_shard
        if type(rows_per_shard) is not int or rows_per_shard < 1:
            raise InvalidArgument(f"rows_per_shard is 1 or more, got {rows_per_shard!r}")
        self.folder = Path(folder)
        self._dtype = numpy_dtype(dtype)
        self._identity: dict[str, Any] = _plain(
            {
                **(identity or {}),
                "format": FORMAT,
                "model_hash": model_hash,
                "site": site,
                "d_in": d_in,
                "dtype": dtype,
                "rules": list(rules),
                "rows_per_shard": rows_per_shard,
            }
        )
        self._rows_per_shard, self._pending, self._kept = rows_per_shard, list[Rows](), 0
        self._shards: list[dict[str, Any]] = []
        self.extra: dict[str, Any] = {}
        """More for the manifest, JSON-able: it is kept from the first shard on and comes back when the store is gone on with."""
        self.manifest: dict[str, Any] = {}
        """As it was found; empty for a new store."""
        self.complete = False
        """A finished store was found: nothing can be appended before `reopen`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / MANIFEST).exists():
            self._go_on()
        elif others := sorted(path.name for path in self.folder.iterdir() if path.name != f"{MANIFEST}.part"):
            raise FailedPrecondition(
                f"{self.folder} holds no store but other files ({', '.join(others[:5])}); give a new folder"
            )
        else:
            self.reopen()

    def _go_on(self) -> None:
        self.manifest = json.loads((self.folder / MANIFEST).read_bytes())
        found = self.manifest
        if found.get("format") == FORMAT and not found["shards"]:  # begun, and nothing lost by beginning anew
            self.reopen()
            return
        wrong = [f"{k} {found.get(k)!r}, not {v!r}" for k, v in self._identity.items() if found.get(k) != v]
        if wrong:
            raise FailedPrecondition(
                f"{self.folder} holds a store of something else: it has {'; '.join(wrong)}. Give the same arguments to go "
                "on with it, or another folder"
            )
        self._shards, self.extra = list(found["shards"]), dict(found["extra"])
        for shard in self._shards:
            ShardFile.of(self.folder, shard).require_size()
        self.complete = bool(found["complete"])
        if not self.complete:
            self.reopen()

    def reopen(self) -> None:
        """Go on with a finished store: takes its last shard away where that is not full."""
        self.complete = False
        if self._shards and self._shards[-1]["rows"] < self._rows_per_shard:
            self._shards.pop()
        self._write_manifest(complete=False, more={})
        self._sweep()

    def _sweep(self) -> None:
        """Remove what a crash left: half-written files, and shards that the manifest does not name."""
        named = {shard["file"] for shard in self._shards}
        for path in self.folder.glob("shard-[0-9]*.safetensors*"):
            if path.name not in named:
                path.unlink()

    @property
    def n_tokens(self) -> int:
        """Rows so far, those of the shard that is being filled included."""
        return sum(shard["rows"] for shard in self._shards) + self._kept

    @property
    def cursor(self) -> dict[str, Any] | None:
        """From where to give rows again: the `cursor` of an `append`, and "row", of its rows how many are stored; None: from the start."""
        return dict(self._shards[-1]["cursor"]) if self._shards else None

    def append(self, rows: Rows | NDArray[Any], cursor: Mapping[str, Any] | None = None, *, first: int = 0) -> None:
        """Take rows [row, d_in]; those with a rule are left out and counted.

        `cursor`: JSON-able, where this call's rows begin in the corpus; `first`: how many of them were stored before and
        are not in `rows`. Raises FailedPrecondition for rows that the store's dtype cannot hold.
        """
        if self.complete:
            raise FailedPrecondition(f"{self.folder} is finished; reopen() it to add rows")
        rows = rows if isinstance(rows, Rows) else Rows.of(np.asarray(rows))
        if rows.values.shape[1] != self._identity["d_in"]:
            raise InvalidArgument(
                f"rows of width {rows.values.shape[1]} do not go into {self.folder}, which has {self._identity['d_in']}"
            )
        taken = 0
        while taken < len(rows):
            room = self._rows_per_shard - self._kept
            ends = np.flatnonzero(rows.kept[taken:])[:room]
            stop = taken + int(ends[-1]) + 1 if len(ends) == room else len(rows)
            self._pending.append(rows[taken:stop])
            self._kept, taken = self._kept + len(ends), stop
            if self._kept == self._rows_per_shard:
                self._flush({**(cursor or {}), "row": first + taken})

    def finish(self, more: Mapping[str, Any] | None = None) -> None:
        """Write the last shard, the statistics and `more` (JSON-able) into the manifest. Raises FailedPrecondition without a row."""
        if not self.n_tokens:
            raise FailedPrecondition(f"no row is left for {self.folder}: every one was left out, or none was given")
        if self._pending:
            self._flush({"row": 0})
        self._write_manifest(complete=True, more=dict(more or {}))

    def _flush(self, cursor: Mapping[str, Any]) -> None:
        rows, self._pending, self._kept = joined(self._pending), [], 0
        kept, dropped = rows[rows.kept], rows[~rows.kept]
        tensors = {**_kept_tensors(kept, self._dtype, self.folder), **_dropped_tensors(dropped)}
        name = f"shard-{len(self._shards):05d}.safetensors"
        counts = {rule["rule"]: int((dropped.rules == i).sum()) for i, rule in enumerate(self._identity["rules"])}
        written = write_shard(self.folder / name, tensors)
        entry = {**written, "rows": len(kept), "dropped": counts, "cursor": cursor}
        self._shards.append(_plain(entry))
        self._write_manifest(complete=False, more={})

    def _write_manifest(self, *, complete: bool, more: Mapping[str, Any]) -> None:
        names = [rule["rule"] for rule in self._identity["rules"]]
        digest = hashlib.sha256(
            json.dumps([self._identity, [s["sha256"] for s in self._shards]], sort_keys=True).encode()
        )
        manifest: dict[str, Any] = {
            **self._identity,
            **self.extra,
            "extra": self.extra,
            "complete": complete,
            "n_tokens": sum(shard["rows"] for shard in self._shards),
            "dropped": {name: sum(shard["dropped"][name] for shard in self._shards) for name in names},
            "data_hash": digest.hexdigest(),
            **more,
            "statistics": self._statistics() if complete else {},
            "shards": self._shards,
        }
        write_json(self.folder / MANIFEST, manifest)

    def _statistics(self) -> dict[str, Any]:
        """From the shards' sums, always added in the same order: a resumed store has the same to the last bit."""
        total, norm, square = np.zeros(self._identity["d_in"]), 0.0, 0.0
        for shard in self._shards:
            file = ShardFile.of(self.folder, shard)
            total += file.tensor("sum")
            norm_sum, square_sum = file.tensor("norm_sums").tolist()
            norm, square = norm + norm_sum, square + square_sum
        n = sum(shard["rows"] for shard in self._shards)
        mean = total / n
        return {
            "mean": mean.tolist(),
            "mean_norm": norm / n,
            "scaling": self._identity["d_in"] ** 0.5 / (norm / n) if norm else 1.0,
            "total_variance": square / n - float(mean @ mean),
        }


def _kept_tensors(rows: Rows, dtype: np.dtype[Any], folder: Path) -> dict[str, NDArray[Any]]:
    with np.errstate(over="ignore"):
        values = rows.values.astype(dtype, copy=False)
    floats = values.astype(np.float32, copy=False)
    norms = row_norms(floats)
    if not np.isfinite(floats).all():
        raise FailedPrecondition(
            f"rows for {folder} hold NaN, infinity, or numbers that {dtype} cannot hold (the greatest it takes is far "
            "below some value); store them in a wider dtype, or leave such rows out by a rule"
        )
    return {
        "activations": values,
        "norms": norms,
        **{name: getattr(rows, name).astype(np.int32) for name in _PLACES},
        "sum": floats.sum(axis=0, dtype=np.float64),
        "norm_sums": np.array([norms.sum(dtype=np.float64), np.square(norms, dtype=np.float64).sum()]),
    }


def _dropped_tensors(rows: Rows) -> dict[str, NDArray[Any]]:
    dimensions = np.abs(rows.values.astype(np.float32)).argmax(axis=1)
    return {
        "dropped_rules": rows.rules.astype(np.int32),
        "dropped_norms": rows.norms,
        "dropped_dimensions": dimensions.astype(np.int32),
        **{f"dropped_{name}": getattr(rows, name).astype(np.int32) for name in _PLACES},
    }


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    """As it comes back from JSON, so that what is compared later compares equal."""
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"a store's manifest is JSON, and what was given is not: {error}") from None
