"""What a worker asks itself at load: does the engine compute what a plain forward computes?

Engines were seen to drop a softcap or a sliding window without a word, and versions change. So at each load one
batched decode of the real weights is held against a run, and, for models with a sliding window, tiny random weights
of the same config are generated past the window and held against the numpy reference.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from ..protos.errors import ProbewireError
from ..protos.model import Sampling
from ..protos.spec import Capture, Hook, Plan, Where
from ..protos.tensors import Array
from . import reference
from .base import Backend, Sequence
from .plan import bind

__all__ = ["engine_fault", "has_window", "window_fault"]

TOLERANCE = {"float32": 1e-3, "float64": 1e-3, "float16": 5e-2, "bfloat16": 3e-1}
"""Relative error that still counts as rounding; the faults seen were of 0.5 and more."""

N_NEW = 3
WINDOW = 8
"""The tiny model's window; its prompts are longer."""
_FINAL = Plan((Hook("logits", capture=Capture(), where=Where(phase="all")),))


def engine_fault(backend: Backend) -> str:
    """Why the engine cannot be trusted with this model, or empty: two prompts in one batch against runs of each."""
    if backend.engine is None or backend.info.site("logits") is None:
        return ""
    try:
        for sequence, decoded in _decode(backend, _prompts(backend.info.vocab_size, (5, 11))):
            forced = _forced(backend, sequence)
            error = _error(decoded, forced)
            if not error <= TOLERANCE[backend.info.dtype]:
                return f"the engine's decode differs from a plain forward by {error:.2g} (relative)"
    except ProbewireError as error:
        return f"the engine failed its first decode: {error.message}"
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


def has_window(config: Mapping[str, Any]) -> bool:
    """Whether some layer of the model sees only the last tokens."""
    return bool(config.get("sliding_window")) and config.get("use_sliding_window", True) is not False


def window_fault(load: Callable[[Path], Backend], folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Why this backend cannot be trusted past the model's window, or empty. `load` loads a folder on it."""
    with tempfile.TemporaryDirectory() as scratch:
        tiny = Path(scratch)
        _write_tiny(tiny, json.loads((folder / "config.json").read_text()), shapes)
        backend = load(tiny)
        try:
            meaning = reference.load(tiny)
            for sequence, decoded in _decode(backend, _prompts(_VOCAB, (WINDOW * 2 + 3, WINDOW + 5))):
                tokens = sequence.tokens[:-1]
                expected = reference.run(meaning, tokens, Plan()).logits[sequence.prompt_length - 1 :]
                error = _error(decoded, expected)
                if not error <= TOLERANCE["float32"]:
                    return f"past the sliding window the engine differs from the reference by {error:.2g} (relative)"
        except ProbewireError as error:
            return f"the check past the sliding window failed: {error.message}"
        finally:
            backend.close()
    return ""


_VOCAB = 128
_HEADS, _KV_HEADS = 4, 2
_LAYER = re.compile(r"\.layers\.(\d+)\.")


def _write_tiny(tiny: Path, config: dict[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A small checkpoint of the same architecture: the same config with smaller sizes, random weights."""
    d_model, heads = config["hidden_size"], config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    d_head = config.get("head_dim") or d_model // heads
    d_mlp = config["intermediate_size"]
    small_head = 16 if heads * d_head == d_model else 24
    layers = min(config["num_hidden_layers"], 4)
    sizes = {
        config["vocab_size"]: _VOCAB,
        2 * d_mlp: 2 * 96,
        d_mlp: 96,
        (heads + 2 * kv_heads) * d_head: (_HEADS + 2 * _KV_HEADS) * small_head,
        heads * d_head: _HEADS * small_head,
        kv_heads * d_head: _KV_HEADS * small_head,
        d_model: 64,
        d_head: small_head,
        heads: _HEADS,
    }
    smaller = {
        "vocab_size": _VOCAB, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": _HEADS,
        "num_key_value_heads": _KV_HEADS, "num_hidden_layers": layers, "sliding_window": WINDOW,
    }  # fmt: skip
    changed = {**config, **smaller, "torch_dtype": "float32", "dtype": "float32"}
    if config.get("head_dim") or small_head != 16:
        changed["head_dim"] = small_head
    if config.get("layer_types"):
        changed["layer_types"] = config["layer_types"][:layers]
    for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
        changed[token] = 1  # within the tiny vocabulary; left out, an architecture's own default may not be
    (tiny / "config.json").write_text(json.dumps(changed))
    rng = np.random.default_rng(0)
    weights = {
        name: rng.normal(0.0, 0.2, [sizes.get(n, n) for n in shape]).astype(np.float32)
        for name, shape in shapes.items()
        if (match := _LAYER.search(name)) is None or int(match[1]) < layers
    }
    (tiny / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
