"""What a worker asks itself at load: is the model causal, and does the engine compute what a plain forward computes?

Engines were seen to drop a softcap or a sliding window without a word, and versions change. So at each load one
batched decode of the real weights is held against a run, and, for models with a sliding window, tiny random weights
of the same config are generated past the window and held against the numpy reference.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..protos.model import Sampling
from ..protos.spec import Capture, Hook, Plan, Where
from ..protos.tensors import Array
from . import reference
from .alone_engine import AloneEngine
from .checkpoints.shrunk import VOCAB, WINDOW, crossed, shrunk
from .hooks.base import Backend
from .hooks.plan import bind
from .hooks.sequence import Sequence
from .model.tolerances import ENGINE_TOLERANCE
from .proof import prove

__all__ = ["causality_fault", "engine_fault", "library_fault", "prove_sites", "window_fault"]

N_NEW = 3
_FINAL = Plan((Hook("logits", capture=Capture(), where=Where(phase="all")),))


COMPARED_LAYERS = 16
"""Of a small model that two libraries are compared on: more than any pattern of layers takes to begin that was seen."""
SAME_CODE = 1e-5
"""Relative error in float32 between two libraries that compute the same: over 16 layers 2e-6 and less was seen, of gemma up to
8e-6; the smallest of two that do not was 6e-5 (a norm's epsilon), another activation's 1e-4."""
SAME = {"float32": 1e-3, "float64": 1e-3, "float16": 2e-2, "bfloat16": 2e-2}
"""Relative error between two forwards of one shape that differ in rows which must not matter."""


def causality_fault(backend: Backend) -> str:
    """Why this is no causal language model, or empty: what comes after a row, and who is beside it, must not change it."""
    rng, n = np.random.default_rng(0), 5
    ids = rng.integers(1, min(backend.info.vocab_size, 1000), size=(2, 2, 11))
    ids[1, 0, :n] = ids[0, 0, :n]
    one, other = (backend.final_rows(batch)[0, :n] for batch in ids)
    error = _error(other, one)
    if error <= SAME[backend.info.dtype]:
        return ""
    return f"tokens that come later, or are in another sequence, change a token's own values by {error:.2g} (relative)"


_BRANCHES = {"mlp_gate", "mlp_up", "mlp_act"}
_NEEDS = {"identity": _BRANCHES, "half": _BRANCHES, "ah": {"q", "k"}}
"""Rule of a backward pass → the sites that it works at."""


def prove_sites(backend: Backend) -> None:
    """Try the sites on the model itself; what does not hold is not offered, with the reason."""
    derived, info = backend.derived, backend.info
    if derived is None:
        return
    start_s = time.perf_counter()
    proof = prove(backend, derived.blocks)
    told = f"sites derived from one forward; {proof.checks} checks at {proof.layers} of {info.n_layers} layers"
    told += f", errors up to {proof.worst:.1e}, in {time.perf_counter() - start_s:.1f} s"
    if proof.parts:
        backend.keep_whole()
        told += f"; runs are not cut: {proof.parts}"
        info = replace(info, refused={**info.refused, "sweeps": f"tried at load, {proof.parts}"})
    faults = dict(proof.faults)
    if "resid_pre" in faults:  # the same tensor, at the first layer
        faults["embed"] = faults["resid_pre"]
    backend.info = replace(
        info,
        sites=tuple(site for site in info.sites if site.name not in faults),
        rules=tuple(rule for rule in info.rules if not _NEEDS.get(rule, set()) & set(faults)),
        refused={**info.refused, **faults},
        proof=told,
    )


def engine_fault(backend: Backend) -> str:
    """Why the engine cannot be trusted with this model, or empty: two prompts in one batch against runs of each."""
    if backend.engine is None or backend.info.site("logits") is None:
        return ""
    for sequence, decoded in _decode(backend, _prompts(backend.info.vocab_size, (5, 11))):
        forced = _forced(backend, sequence)
        error = _error(decoded, forced)
        if not error <= ENGINE_TOLERANCE[backend.info.dtype]:
            return f"the engine's decode differs from a plain forward by {error:.2g} (relative)"
    return ""


def _prompts(vocab: int, lengths: tuple[int, ...]) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, min(vocab, 1000), size=n).tolist() for n in lengths]


def _decode(backend: Backend, prompts: list[list[int]]) -> list[tuple[Sequence, Array]]:
    """Generate a few tokens of each prompt in one batch: (sequence, logits of its sampled rows)."""
    engine = backend.engine
    assert engine is not None
    sequences = [_sequence(backend, f"check{i}", tokens, "generate") for i, tokens in enumerate(prompts)]
    waiting = sequences  # a small engine takes them one after the other
    rows: dict[str, list[Array]] = {sequence.id: [] for sequence in sequences}
    live = {sequence.id for sequence in sequences}
    while live:
        waiting = [sequence for sequence in waiting if not engine.admit(sequence)]
        for result in engine.step():
            if result.error is not None:
                raise result.error
            found = result.sequence
            if found.id in live:
                rows[found.id] += [r.values[0] for r in result.rows]
                if found.n_generated >= N_NEW:
                    engine.remove(found)
                    live.discard(found.id)
    return [(sequence, np.concatenate(rows[sequence.id])) for sequence in sequences]


def _sequence(backend: Backend, name: str, tokens: list[int], mode: str, prompt_length: int | None = None) -> Sequence:
    length = prompt_length or len(tokens)
    plan = bind(
        _FINAL,
        backend,
        mode="generate" if mode == "generate" else "run",
        input_name="input",
        tokens=tokens,
        prompt_length=length,
        n_rows=len(tokens) + N_NEW - 1 if mode == "generate" else len(tokens),
    )
    backend.bind(plan)
    return Sequence(name, list(tokens), length, plan, Sampling(max_new_tokens=N_NEW))


def _forced(backend: Backend, made: Sequence) -> Array:
    """Logits of the sampled rows from one plain forward over the same tokens."""
    forced = _sequence(backend, "forced", made.tokens[:-1], "run", made.prompt_length)
    [result] = backend.run([forced])
    if result.error is not None:
        raise result.error
    return result.rows[0].values[0][made.prompt_length - 1 :]


def _error(found: Array, expected: Array) -> float:
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-9))


def library_fault(
    load: Callable[[Path], Backend],
    write: Callable[[Path, dict[str, Any]], None],
    config: Mapping[str, Any],
    own_logits: Callable[[Path, list[int]], Array],
) -> str:
    """Why a library's code for an architecture is not transformers', or empty; tried on small random weights of the same
    config, on a text longer than every length at which something changes. Arguments are as for `window_fault`."""
    with tempfile.TemporaryDirectory() as scratch:
        tiny = Path(scratch)
        write(tiny, crossed(shrunk(config, n_layers=COMPARED_LAYERS)))
        backend = load(tiny)
        try:
            if backend.info.site("logits") is None:
                return "on small random weights of this config no table of its sites was found"
            n = min(WINDOW * 2 + 3, backend.info.context_length)
            [tokens] = _prompts(VOCAB, (n,))
            [result] = backend.run([_sequence(backend, "beside", tokens, "run", 1)])
            if result.error is not None:
                raise result.error
            error = _error(result.rows[0].values[0], own_logits(tiny, tokens))
        finally:
            backend.close()
    return (
        "" if error <= SAME_CODE else f"logits differ by {error:.2g} (relative) on small random weights of this config"
    )


def window_fault(
    load: Callable[[Path], Backend],
    write: Callable[[Path, dict[str, Any]], None],
    config: Mapping[str, Any],
    own_logits: Callable[[Path, list[int]], Array] | None = None,
    *,
    alone: AloneEngine | None = None,
) -> str:
    """Why this backend cannot be trusted past the model's window, or empty.

    `write` makes a small checkpoint of a config, `load` loads it on the backend; `config` has every field written out.
    `alone`: the model's engine, where its sequences go one after another. `own_logits` says what the backend's own library makes of tokens, for architectures that the reference does not know.
    """
    with tempfile.TemporaryDirectory() as scratch:
        tiny = Path(scratch)
        write(tiny, shrunk(config))
        backend = load(tiny)
        if alone is not None and not backend.info.batching:
            backend.generate_alone("that of the model is so")
        if alone is not None and not alone.turns.chunk_rows and isinstance(backend.engine, AloneEngine):
            backend.engine.turns.chunk_rows = 0
        if backend.engine is None:
            return f"a small model of its kind does not generate: {backend.info.generate_note}"
        try:
            known = config["model_type"] in reference.MODEL_TYPES or own_logits is None
            meaning = reference.load(tiny) if known else None
            for sequence, decoded in _decode(backend, _prompts(VOCAB, (WINDOW * 2 + 3, WINDOW + 5))):
                tokens = sequence.tokens[:-1]
                if meaning is not None:
                    logits = reference.run(meaning, tokens, Plan()).logits
                else:
                    assert own_logits is not None
                    logits = own_logits(tiny, tokens)
                expected = logits[sequence.prompt_length - 1 :]
                error = _error(decoded, expected)
                if not error <= ENGINE_TOLERANCE["float32"]:
                    return f"past the sliding window the engine differs from the reference by {error:.2g} (relative)"
        finally:
            backend.close()
    return ""
