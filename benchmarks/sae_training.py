"""(j) Training SAEs: fed from our store against sae-lens fed from memory, and fed live against capture, then training."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ratios import Figure, compare, interleaved
from servers import probewire
from sizes import QUICK, Sizes

from probewire.analysis.sae.data.collect import collect
from probewire.analysis.sae.data.live import LiveBatches
from probewire.analysis.sae.data.rows import Rows
from probewire.analysis.sae.data.store import ActivationStore, StoreWriter
from probewire.analysis.sae.model.configs import TrainConfig, new_sae
from probewire.analysis.sae.training.training import train
from probewire.clients import Client

__all__ = ["fed_from_a_store", "fed_live"]

D_IN, D_SAE, K, BATCH = 576, 2304, 32, 1024
"""Of the default model, and of the SAE that its figures are of."""
SITE = "resid_post.15"
STORE, MEMORY = "probewire from its store", "sae-lens from memory"
LIVE, APART = "live", "capture, then training"


def fed_from_a_store(sizes: Sizes) -> list[Figure]:
    """Rows a second of `train` on a store in bfloat16 on the disk, and of sae-lens's own `fit` on a tensor.

    Ours has its checkpoints and a curve point a step in it, but not the final files; theirs is `SAETrainer.fit` whole.
    """
    steps = 8 if _quick(sizes) else 150
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = _rows(BATCH * (16 if _quick(sizes) else 200))
        store = _store(folder / "store", rows)
        timed = {
            STORE: partial(_from_store, store, steps, folder),
            MEMORY: partial(_from_memory, rows, steps),
        }
        samples = interleaved(timed, rounds=sizes.rounds)
    return [
        compare(
            f"{D_IN} → {D_SAE} latents, k {K}, batches of {BATCH}: ours from the store / sae-lens from memory",
            samples,
            (STORE, MEMORY),
            unit="rows/s",
            target=0.95,
            note=f"{steps} steps over {len(rows):,} rows, {store.dtype} on the disk, float32 in memory",
        )
    ]


def fed_live(sizes: Sizes) -> list[Figure]:
    """Seconds of training straight from a server, and of collecting as many rows and then training on them."""
    steps = 4 if _quick(sizes) else 60
    with (
        tempfile.TemporaryDirectory() as scratch,
        probewire("torch", dtype="bfloat16") as served,
        Client(served.grpc) as client,
    ):
        folder = Path(scratch)
        parts: list[tuple[float, float]] = []
        timed = {
            LIVE: partial(_live, client, steps, folder),
            APART: partial(_apart, client, steps, folder, parts),
        }
        samples = interleaved(timed, rounds=sizes.analysis_rounds)
    capture, training = (sorted(values)[len(parts) // 2] for values in zip(*parts, strict=True))
    return [
        compare(
            f"{steps} steps of {BATCH} rows from {SITE}: live / capture and training added up",
            samples,
            (LIVE, APART),
            unit="s",
            target=1.0,
            times=True,
            note=f"capture {capture:.1f} s, training {training:.1f} s, medians; the text is Python's reference (pydoc_data)",
        )
    ]


def _config(steps: int) -> TrainConfig:
    return TrainConfig(architecture="topk", d_sae=D_SAE, k=K, steps=steps, batch_size=BATCH, checkpoints=2)


def _from_store(store: ActivationStore, steps: int, folder: Path) -> float:
    """Rows a second, from the first batch to the last step."""
    with _fresh(folder) as out, store.batches(BATCH, seed=1) as batches:
        return steps * BATCH / train(batches, _config(steps), out, progress=False).run.wall_seconds


def _from_memory(rows: NDArray[np.float32], steps: int) -> float:
    """Rows a second of sae-lens's trainer on a plain iterator over a tensor."""
    torch: Any = import_module("torch")
    config = _config(steps)
    sae = new_sae(config, D_IN)
    held = torch.from_numpy(rows)

    def batches() -> Iterator[Any]:
        while True:
            order = torch.randperm(len(held))
            for start in range(0, len(held) - BATCH + 1, BATCH):
                yield held[order[start : start + BATCH]]

    trainer = import_module("sae_lens.training.sae_trainer").SAETrainer(
        cfg=config.trainer_config(), sae=sae, data_provider=batches()
    )
    start = time.perf_counter()
    trainer.fit()
    return steps * BATCH / (time.perf_counter() - start)


def _live(client: Client, steps: int, folder: Path) -> float:
    """Seconds from nothing to an SAE."""
    start = time.perf_counter()
    with _fresh(folder) as out, LiveBatches(client, _texts(), SITE, BATCH, window_rows=2 * BATCH) as batches:
        train(batches, _config(steps), out, progress=False)
        return time.perf_counter() - start


def _apart(client: Client, steps: int, folder: Path, parts: list[tuple[float, float]]) -> float:
    start = time.perf_counter()
    with _fresh(folder) as out:
        store = collect(client, _texts(), SITE, out / "store", n_tokens=steps * BATCH, progress=False)
        captured = time.perf_counter()
        with store.batches(BATCH) as batches:
            train(batches, _config(steps), out / "sae", progress=False)
        end = time.perf_counter()
    parts.append((captured - start, end - captured))
    return end - start


@contextmanager
def _fresh(folder: Path) -> Generator[Path]:
    """A new folder that goes again."""
    made = Path(tempfile.mkdtemp(dir=folder))
    try:
        yield made
    finally:
        shutil.rmtree(made)


def _rows(n: int) -> NDArray[np.float32]:
    """[row, D_IN]: sparse sums of random directions, so that no step is easier than on activations."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(2 * D_IN, D_IN)).astype(np.float32)
    out = np.empty((n, D_IN), dtype=np.float32)
    for start in range(0, n, 4096):
        part = out[start : start + 4096]
        part[:] = (
            rng.exponential(size=(len(part), 2 * D_IN)) * (rng.random((len(part), 2 * D_IN)) < 0.03)
        ) @ directions
    return out


def _store(folder: Path, rows: NDArray[np.float32]) -> ActivationStore:
    writer = StoreWriter(folder, d_in=D_IN, dtype="bfloat16", model_hash="none", site=SITE, rules=[])
    for start in range(0, len(rows), 8192):
        writer.append(Rows.of(rows[start : start + 8192]))
    writer.finish({})
    return ActivationStore.open(folder)


def _texts() -> list[str]:
    """Python's language reference, which every Python has on the disk."""
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    return [text for text in topics.values() if text.strip()]


def _quick(sizes: Sizes) -> bool:
    return sizes.analysis_rounds <= QUICK.analysis_rounds
