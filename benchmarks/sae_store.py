"""(s) The activation store: batches off the disk against a bare sequential read of the same bytes."""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ratios import Figure, compare, interleaved
from sizes import QUICK, Sizes

from probewire.analysis.sae.data.store import ActivationStore, StoreBatches, StoreWriter

__all__ = ["store_reads"]

D_IN = 576
"""Of the default model."""
ROWS = 900_000
"""About 1 GiB in bfloat16."""
QUICK_ROWS = 60_000
BATCH = 4096
_PIECE = 8 << 20
BARE, DIRECT = "bare sequential read", "bare sequential read past the page cache"
LATER, FIRST, IN_ORDER = "shuffled, later epochs", "shuffled, first epoch (CRC-32 of each shard)", "in order"
COLD = (
    "before each timing the files' pages are dropped from this system's page cache (posix_fadvise), for both sides alike; "
    "what a virtual machine's host keeps in its own cache stays there for both"
)
WARM = "a copy of memory, against a disk that is read all the same, where it is fast"


def store_reads(sizes: Sizes) -> list[Figure]:
    """GB/s of a whole epoch of float32 batches out of bfloat16 shards, from the disk and from the page cache."""
    with _store(QUICK_ROWS if sizes.n_new == QUICK.n_new else ROWS) as folder:
        known = ActivationStore.open(folder)
        known.verify()  # so that its shards count as read before
        with known.batches(BATCH, seed=0) as shuffled, known.batches(BATCH, shuffle=False) as in_order:
            return _read(folder, known.n_tokens, shuffled, in_order, sizes.rounds)


def _read(folder: Path, rows: int, shuffled: StoreBatches, in_order: StoreBatches, rounds: int) -> list[Figure]:
    variants = {
        BARE: partial(_bare, folder),
        DIRECT: partial(_direct, folder),
        LATER: partial(_epoch, shuffled, shuffled.state_dict(), rows),
        FIRST: partial(_first_epoch, folder),
        IN_ORDER: partial(_epoch, in_order, in_order.state_dict(), rows),
    }
    from_disk = {name: _from_disk(folder, once) for name, once in variants.items()}
    cold = interleaved(from_disk, rounds=rounds, any_order=True)
    warm = interleaved(variants, rounds=rounds)
    name = f"store, batches of {BATCH:,} × {D_IN}"
    return [
        *(
            compare(
                f"{name}, {ours} / {bare}",
                cold,
                (ours, bare),
                unit="GB/s",
                target=0.8,
                note=COLD if (ours, bare) == (LATER, BARE) else "",
            )
            for ours in (LATER, FIRST, IN_ORDER)
            for bare in (BARE, DIRECT)
        ),
        compare(f"{name}, {LATER} / {BARE}, all in the page cache", warm, (LATER, BARE), unit="GB/s", note=WARM),
    ]


@contextmanager
def _store(rows: int) -> Generator[Path]:
    """A store of random rows on the disk that holds this repository."""
    build = Path(__file__).parents[1] / "build"
    build.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=build) as temporary:
        folder = Path(temporary, "store")
        writer = StoreWriter(folder, d_in=D_IN, dtype="bfloat16", model_hash="benchmark", site="resid_post.15")
        rng = np.random.default_rng(0)
        for start in range(0, rows, 30_000):
            writer.append(rng.standard_normal((min(30_000, rows - start), D_IN), dtype=np.float32))
        writer.finish()
        yield folder


def _from_disk(folder: Path, once: Callable[[], float]) -> Callable[[], float]:
    def dropped() -> float:
        for path in folder.iterdir():
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)
        return once()

    return dropped


def _bare(folder: Path) -> float:
    """GB/s of reading every shard front to back into one buffer."""
    piece, done, start = memoryview(bytearray(_PIECE)), 0, time.perf_counter()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb", buffering=0) as file:
            while n := file.readinto(piece):
                done += n
    return done / (time.perf_counter() - start) / 1e9


def _direct(folder: Path) -> float:
    """The same with O_DIRECT."""
    piece, done, start = mmap.mmap(-1, _PIECE), 0, time.perf_counter()
    for path in sorted(folder.glob("*.safetensors")):
        file = os.open(path, os.O_RDONLY | os.O_DIRECT)
        here = 0
        while n := os.preadv(file, [piece], here):
            here += n
        os.close(file)
        done += here
    return done / (time.perf_counter() - start) / 1e9


def _first_epoch(folder: Path) -> float:
    store = ActivationStore.open(folder)
    with store.batches(BATCH, seed=0) as batches:
        return _epoch(batches, batches.state_dict(), store.n_tokens)


def _epoch(batches: StoreBatches, start: dict[str, Any], n_tokens: int) -> float:
    """GB/s of the activations, as they lie on the disk, over one epoch of batches, from the first read to the last batch."""
    batches.load_state_dict(start)  # so that no window has been fetched yet
    rows, started = 0, time.perf_counter()
    while rows + BATCH <= n_tokens:
        rows += len(next(batches))
    seconds = time.perf_counter() - started
    batches.load_state_dict(start)  # waits for the window after, which would be read beside whatever is timed next
    return rows * D_IN * 2 / seconds / 1e9
