"""Whether sequences that share forwards through the library's own caches come to what each comes to alone, tried on the model itself.

Logits and every site that generations offer are compared, of prompts of many lengths beside each other, some of them
edited, while one after the other ends. Where numbers are too coarse to tell a slip from rounding, and where a window or a
chunk is longer than what can be tried, small random weights of the same config are tried in its stead.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence as SequenceOf
from pathlib import Path
from typing import Any

import numpy as np

from ..protos.errors import ProbewireError
from ..protos.spec import Capture, Hook, Plan
from .alone_check import ROUNDING, Found, Trial, errors_of
from .batch_engine import BatchEngine
from .checkpoints.shrunk import WINDOW, shrunk
from .hooks.base import Backend
from .hooks.sequence import Sequence
from .model.families import window_in
from .model.tolerances import ENGINE_TOLERANCE

__all__ = ["batch_fault"]

PROMPTS = ((11, 6), (1, 4), (5, 6), (8, 3))
"""(tokens, new ones) beside each other: the shortest is padded most, and one after the other leaves."""
NEAR_A_WINDOW = ((7, 3), (-3, 6))
"""The same, more than a window: the second comes to it while it generates."""
PAST_A_WINDOW = ((WINDOW * 2 + 3, 6), (3, WINDOW + 3), (WINDOW + 5, 4), (WINDOW - 2, 6))
"""The same of a small model whose window is so long; one comes to it while it generates."""


def batch_fault(
    backend: Backend,
    load: Callable[[Path], Backend],
    write: Callable[[Path, dict[str, Any]], None],
    config: Mapping[str, Any],
    window: int = 0,
) -> str:
    """Why sequences that generate must go one after another, or empty: they share forwards from then on.

    `backend` has been seen to generate alone what it should. `write` makes a small checkpoint of a config, `load` loads
    it on the backend; `config` has every field written out. `window`: positions that some layers see, of a model that
    cannot be made smaller to be tried past them.
    """
    engine = backend.engine
    assert isinstance(engine, BatchEngine)
    if engine.limits.n_slots == 1:
        return "there is one slot"
    if fault := engine.forward.stacking_fault():
        return fault
    prompts = (*PROMPTS, *((window + n, new) for n, new in NEAR_A_WINDOW if window))
    fault = _fault(backend, engine, prompts)
    otherwise = bool(fault) and engine.forward.mask_otherwise()
    if otherwise:
        fault = _fault(backend, engine, prompts)
    if not fault and (window_in(config) or backend.info.dtype not in ROUNDING):
        try:
            fault = _small_fault(load, write, config, whole=not engine.turns.chunk_rows, otherwise=otherwise)
        except Exception as error:  # noqa: BLE001 - the libraries raise what they like of a small model
            fault = f"it failed: {type(error).__name__}: {' '.join(str(error).split())}"
        fault = fault and f"on small random weights of this config, {fault}"
    engine.batching = not fault
    return fault


def _small_fault(
    load: Callable[[Path], Backend],
    write: Callable[[Path, dict[str, Any]], None],
    config: Mapping[str, Any],
    *,
    whole: bool,
    otherwise: bool,
) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        tiny = Path(scratch)
        write(tiny, shrunk(config))
        backend = load(tiny)
        try:
            if not backend.generate_alone("that of the model is so"):
                return backend.info.generate_note
            engine = backend.engine
            assert isinstance(engine, BatchEngine)
            if otherwise:
                engine.forward.mask_otherwise()
            if whole:
                engine.turns.chunk_rows = 0
            return engine.forward.stacking_fault() or _fault(backend, engine, PAST_A_WINDOW)
        finally:
            backend.close()


def _fault(backend: Backend, engine: BatchEngine, prompts: SequenceOf[tuple[int, int]]) -> str:
    trial = Trial(backend, engine)
    prompts = [(n, new) for n, new in prompts if engine.reason_not_to_fit(n + new) is None]
    tokens = [trial.rng.integers(1, min(backend.info.vocab_size, 1000), size=n).tolist() for n, _ in prompts]
    edits = [(), *([(edit,)] if (edit := trial.edit()) else [])]
    every = [site for one in backend.info.sites if one.generate for site in trial.all_of(one.name)]

    def made(sites: SequenceOf[str], *, shared: bool) -> tuple[list[Sequence], list[Found]]:
        engine.batching = shared
        reading = [Hook(site, capture=Capture()) for site in sites]
        sequences = [
            trial.sequence(f"check{i}", tokens[i], Plan((*edits[i % len(edits)], *reading)), new=new)
            for i, (_, new) in enumerate(prompts)
        ]
        return sequences, trial.generated(sequences)

    before, n_shared = engine.batching, engine.n_shared
    try:
        alone = made(every, shared=False)
        # Whose scores are read has attention made step by step; nobody's are, so that all goes through the kernel.
        found = [made(sites, shared=True) for sites in (every, ("logits",))]
    except ProbewireError as failed:
        return f"sequences that share a forward fail: {failed.message}"
    finally:
        engine.batching = before
    if engine.n_shared == n_shared:
        return "no two sequences were seen to share a forward"
    tolerance = ROUNDING.get(backend.info.dtype, ENGINE_TOLERANCE[backend.info.dtype])
    return next(filter(None, (_difference(one, alone, tolerance) for one in found)), "")


def _difference(
    found: tuple[list[Sequence], list[Found]], expected: tuple[list[Sequence], list[Found]], tolerance: float
) -> str:
    for mine, got, other, want in zip(*found, *expected, strict=True):
        same = _rows_alike(mine, other)
        asked = {site for site, _ in got}
        wanted = {key: row for key, row in want.items() if key[1] < same and key[0] in asked}
        errors = errors_of({key: row for key, row in got.items() if key[1] < same}, wanted, same, mine.prompt_length)
        kind, worst = max(errors.items(), key=lambda item: np.nan_to_num(item[1], nan=np.inf))
        if not worst <= tolerance:
            return (
                f"{kind} of a sequence that shares forwards with others differs by {worst:.2g} of the largest from what it "
                f"is alone ({tolerance:.0e} is allowed)"
            )
    return ""


def _rows_alike(mine: Sequence, other: Sequence) -> int:
    """Rows before the first token that differs: behind it, nothing can be compared."""
    pairs = enumerate(zip(mine.tokens, other.tokens, strict=True))
    return next((i for i, (one, two) in pairs if one != two), len(mine.tokens) - 1)
