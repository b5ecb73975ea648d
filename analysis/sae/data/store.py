"""Activations on the disk: safetensors shards beside a manifest that says exactly what they are.

    folder/manifest.json            what, from where, left out by which rule, shards with rows and SHA-256, statistics
    folder/shard-00000.safetensors  activations [row, d_in]; token_ids, positions, documents, offsets, norms [row]; the
                                    same of left-out rows as dropped_…, with the index of the rule and the unit with the
                                    largest |value|; sums for the statistics

Every shard but the last has the same number of rows. The manifest has no times in it: equal data gives equal files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import FailedPrecondition, InvalidArgument, NotFound
from ....protos.sites import Site
from ....protos.tensors import numpy_dtype
from .disk import Disk
from .massive import TIMES, MassiveDetector, MassiveReport
from .rows import Rows
from .shards import ShardFile
from .store_writer import FORMAT, MANIFEST, StoreWriter
from .windows import Window, WindowedBatches

__all__ = ["ActivationStore", "StoreBatches", "StoreWriter"]

WINDOW_SHARDS = 4


class ActivationStore:
    """A folder of activations, [row, d_in], and what is known of each row. Sizes are checked on opening, a shard's
    CRC-32 when it is first read from; `verify` compares the SHA-256 of all.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """Use `open`."""
        self.folder, self.manifest = folder, manifest
        self._shards = [ShardFile.of(folder, s) for s in manifest["shards"]]
        self._starts = np.concatenate([[0], np.cumsum([s["rows"] for s in manifest["shards"]], dtype=np.int64)])
        self._verified: set[int] = set()

    @classmethod
    def open(
        cls, folder: str | Path, *, model_hash: str = "", site: str = "", allow_incomplete: bool = False
    ) -> ActivationStore:
        """Open a store; `model_hash` and `site`, where given, must be its own.

        Raises NotFound without a manifest, InvalidArgument for another format, and FailedPrecondition for a store that
        is not finished (`allow_incomplete`: its whole shards are used), of another model or site, or without its files.
        """
        folder = Path(folder)
        store = cls(folder, read_manifest(folder))
        store.require(model_hash=model_hash, site=site)
        if not store.manifest["complete"] and not allow_incomplete:
            raise FailedPrecondition(
                f"{folder} is not complete ({store.n_tokens:,} tokens so far); call collect again with the same "
                "arguments to go on, or open it with allow_incomplete=True"
            )
        if not store.n_tokens:
            raise FailedPrecondition(f"{folder} holds no tokens yet; call collect again with the same arguments")
        for shard in store._shards:
            shard.require_size()
        return store

    def require(self, *, model_hash: str = "", site: str = "") -> None:
        """Raise FailedPrecondition unless the rows are from this model and this site."""
        if model_hash and model_hash != self.model_hash:
            raise FailedPrecondition(
                f"{self.folder} holds activations of the model {self.manifest.get('model', '')} with hash "
                f"{self.model_hash}, not of {model_hash}; collect them from the model that you use"
            )
        if site and str(Site.parse(site)) != self.site:
            raise FailedPrecondition(f"{self.folder} holds activations of {self.site}, not of {site}; collect these")

    @property
    def n_tokens(self) -> int:
        """Rows."""
        return int(self._starts[-1])

    @property
    def d_in(self) -> int:
        """Width of a row."""
        return int(self.manifest["d_in"])

    @property
    def dtype(self) -> str:
        """Of the rows on the disk."""
        return str(self.manifest["dtype"])

    @property
    def site(self) -> str:
        """Where the rows were read."""
        return str(self.manifest["site"])

    @property
    def model_hash(self) -> str:
        """Of the model that they were read from."""
        return str(self.manifest["model_hash"])

    @property
    def mean(self) -> NDArray[np.float64]:
        """[d_in]."""
        return np.array(self.manifest["statistics"]["mean"])

    @property
    def mean_norm(self) -> float:
        """Mean Euclidean norm of a row."""
        return float(self.manifest["statistics"]["mean_norm"])

    @property
    def scaling(self) -> float:
        """sqrt(d_in) / mean norm: what sae-lens multiplies rows by (normalize_activations="expected_average_only_in")."""
        return float(self.manifest["statistics"]["scaling"])

    def array(self, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) in float32, [row, d_in]."""
        return self.raw("activations", start, stop).astype(np.float32)

    def raw(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows [start, stop) of one tensor as it is stored: activations, token_ids, positions, documents, offsets, norms."""
        start, stop, _ = slice(start, stop).indices(self.n_tokens)
        parts = [
            self._shard(i).tensor(name, max(start - low, 0), min(stop, high) - low)
            for i, (low, high) in enumerate(zip(self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True))
            if low < stop and start < high
        ]
        if not parts:
            raise InvalidArgument(f"no rows {start}:{stop} in {self.folder}, which has {self.n_tokens:,}")
        return np.concatenate(parts)

    def rows(self, start: int = 0, stop: int | None = None) -> Rows:
        """Rows [start, stop) with where each comes from: `documents` and `offsets` lead to the corpus's text."""
        places = {
            name: self.raw(name, start, stop) for name in ("norms", "token_ids", "positions", "documents", "offsets")
        }
        return Rows.of(self.raw("activations", start, stop), **places)

    def dropped(self) -> dict[str, NDArray[Any]]:
        """What was left out: token_ids, positions, documents, offsets, norms, dimensions, and rules (index into manifest["rules"])."""
        names = ("rules", "token_ids", "positions", "documents", "offsets", "norms", "dimensions")
        parts = [self._shard(i) for i in range(len(self._shards))]
        return {name: np.concatenate([part.tensor(f"dropped_{name}") for part in parts]) for name in names}

    def massive(self, times: float = TIMES) -> MassiveReport:
        """Massive rows among all rows seen, those left out included; the median is that of the calibration, or of all."""
        norms, dropped = self.raw("norms"), self.dropped()
        median = self.manifest.get("median_norm")
        detector = MassiveDetector(
            float(np.median(np.concatenate([norms, dropped["norms"]]))) if median is None else median, times
        )
        for low, high in zip(self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True):
            detector.update(self.rows(low, high))
        detector.update(_seen(dropped, self.d_in))
        return detector.report()

    def verify(self) -> None:
        """Read every shard and compare its SHA-256. Raises FailedPrecondition at the first that differs."""
        for i, shard in enumerate(self._shards):
            shard.verify()
            self._verified.add(i)

    def batches(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        window_shards: int = WINDOW_SHARDS,
    ) -> StoreBatches:
        """Endless batches, float32, every row once an epoch; `manifest` and `state_dict` as `Batches` says.

        Order: each epoch draws an order of the shards; `window_shards` of them in that order make a window, whose rows
        are shuffled together. So the disk is read front to back, a shard at a time, and a row meets those of
        `window_shards` shards. `shuffle=False`: rows as they lie. Memory: two windows in the stored dtype.
        """
        if type(window_shards) is not int or window_shards < 1:
            raise InvalidArgument(f"window_shards is 1 or more, got {window_shards!r}")
        return StoreBatches(self, batch_size, seed, shuffle, window_shards)

    def _shard(self, index: int) -> ShardFile:
        """A shard, verified at its first use."""
        if index not in self._verified:
            self._shards[index].check()
            self._verified.add(index)
        return self._shards[index]

    def shard_rows(self, index: int) -> int:
        """Rows of one shard."""
        return int(self._starts[index + 1] - self._starts[index])

    def read_into(self, shards: Sequence[int], out: NDArray[Any], disk: Disk) -> int:
        """Read some shards' activations into `out` [row, d_in] and give the number of rows.

        At a shard's first use its checksum is compared on the way.
        """
        filled = 0
        with closing(disk.read([self._shards[index].path for index in shards])) as pieces:
            for number, of_one in groupby(pieces, key=lambda numbered: numbered[0]):
                index = shards[number]
                rows, check = out[filled : filled + self.shard_rows(index)], index not in self._verified
                self._shards[index].take("activations", (piece for _, piece in of_one), rows, check=check)
                self._verified.add(index)
                filled += len(rows)
        return filled

    def __repr__(self) -> str:
        return (
            f"ActivationStore({str(self.folder)!r}: {self.n_tokens:,} × {self.d_in} {self.dtype} of {self.site}, model "
            f"{self.model_hash[:12]}…, {len(self._shards)} shards)"
        )


class StoreBatches(WindowedBatches):
    """What `ActivationStore.batches` gives."""

    def __init__(self, store: ActivationStore, batch_size: int, seed: int, shuffle: bool, window_shards: int) -> None:
        self._store = store
        self._shards = [i for i in range(len(store.manifest["shards"])) if store.shard_rows(i)]
        self._per_window = min(window_shards, len(self._shards))
        said = {key: value for key, value in store.manifest.items() if key not in ("shards", "extra", "statistics")}
        self.manifest: Mapping[str, Any] = {**said, "kind": "store", "folder": str(store.folder)}
        rows = min(self._per_window * max(map(store.shard_rows, self._shards)), store.n_tokens)
        self._disk = Disk()
        self._buffers = [np.empty((rows, store.d_in), dtype=numpy_dtype(store.dtype)) for _ in range(2)]
        for buffer in self._buffers:
            buffer.view(np.uint8).fill(0)  # maps the memory once, here: while reading it would slow the disk's reader
        identity = {"kind": "store", "data_hash": store.manifest["data_hash"], "window_shards": self._per_window}
        super().__init__(self._read, {}, identity, d_in=store.d_in, batch_size=batch_size, seed=seed, shuffle=shuffle)

    def _read(self, number: int, _place: Mapping[str, Any]) -> Window:
        buffer = self._buffers[number % 2]
        return Window(buffer[: self._store.read_into(self._shards_of(number), buffer, self._disk)], {})

    def close(self) -> None:
        """End the threads. Waits for what they are doing."""
        super().close()
        self._disk.close()

    def _shards_of(self, number: int) -> list[int]:
        """The shards of a window."""
        epoch, window = divmod(number, -(-len(self._shards) // self._per_window))
        order = np.array(self._shards)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch, len(order)]).permutation(order)
        return order[window * self._per_window : (window + 1) * self._per_window].tolist()


def read_manifest(folder: Path) -> dict[str, Any]:
    """A store's manifest. Raises NotFound without one, InvalidArgument for another format."""
    path = folder / MANIFEST
    if not path.is_file():
        raise NotFound(
            f"{folder} is no activation store: it has no {MANIFEST}; collect(…), `probewire sae collect`, makes one"
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_bytes())
        found = manifest.get("format")
    except (ValueError, AttributeError) as error:
        raise InvalidArgument(f"{path} is not a manifest: {error}") from None
    if found != FORMAT:
        raise InvalidArgument(f"{path} has the format {found!r}; this version reads {FORMAT!r}")
    return manifest


def _seen(dropped: Mapping[str, NDArray[Any]], d_in: int) -> Rows:
    """Left-out rows with the one value of each that a detector looks at: where it is largest."""
    hit = np.flatnonzero(dropped["dimensions"] >= 0)
    values = np.zeros((len(hit), d_in), dtype=np.float32)
    values[np.arange(len(hit)), dropped["dimensions"][hit]] = 1
    places = {name: dropped[name][hit] for name in ("norms", "token_ids", "positions", "documents", "offsets")}
    return Rows.of(values, **places)
