"""Runs the same request on every backend and lines the captures up."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probewire.backends import load_backend
from probewire.backends.batch_engine import BatchEngine
from probewire.backends.hooks.base import Backend
from probewire.backends.hooks.captures import flush_reductions
from probewire.backends.hooks.plan import bind
from probewire.backends.hooks.sequence import Rows, Sequence, StepResult
from probewire.backends.model.limits import Limits
from probewire.backends.saes import Sae, UserAssets
from probewire.protos.model import Sampling
from probewire.protos.spec import Capture, Hook, Plan

Array = np.ndarray[Any, Any]
Key = tuple[int, str, str]
"""(hook, site, part)"""

TOLERANCE = {"float32": 1e-4, "float16": 1e-3}
"""Relative error allowed, by dtype (float16: of captures cast to it; half a unit in its last place is 5e-4). Never loosened: a failure has a cause."""

CHUNKED = Limits(n_slots=8, context_tokens=512, cache_tokens=4096, chunk_tokens=8, page_tokens=32)
"""Small chunks, so that every prompt here is prefilled in several."""


@dataclass(frozen=True, slots=True)
class Captured:
    """All rows of one capture, in position order."""

    positions: tuple[int, ...]
    values: Array
    """[pos, …]; attn_*: [head, query, key]."""


def load(name: str, folder: Path, *, dtype: str = "float32", limits: Limits = CHUNKED) -> Backend:
    """A backend on this machine's CPU. What has a reference is held to it here, and so not tried at each load."""
    return load_backend(name, folder, model_id="tiny", limits=limits, dtype=dtype, device="cpu", prove_known=False)


def stack_caches(backend: Backend) -> None:
    """Have a torch backend batch through the library's own caches, as models do that its batching refuses."""
    assert backend.generate_alone("a test of it")
    engine = backend.engine
    assert isinstance(engine, BatchEngine)
    assert engine.forward.stacking_fault() == ""
    engine.batching = True


def sequence(
    backend: Backend,
    tokens: list[int],
    plan: Plan,
    *,
    mode: str = "run",
    prompt_length: int | None = None,
    max_new: int = 8,
    name: str = "s",
    stored: Mapping[str, Array] | None = None,
    saes: Mapping[str, Sae] | None = None,
    sampling: Sampling | None = None,
) -> Sequence:
    """A bound sequence, ready to run or to be admitted."""
    length = prompt_length or len(tokens)
    bound = bind(
        plan,
        backend,
        mode="run" if mode == "run" else "generate",
        input_name="input",
        tokens=tokens,
        prompt_length=length,
        n_rows=len(tokens) if mode == "run" else len(tokens) + max_new - 1,
        assets=UserAssets(stored or {}, saes or {}),
    )
    backend.bind(bound)
    sampling = sampling or Sampling(max_new_tokens=max_new)
    return Sequence(
        name,
        list(tokens),
        length,
        bound,
        sampling,
        sampling.seed or 0,
    )


def collect(rows: Iterable[Rows]) -> dict[Key, Captured]:
    """Join rows over steps; every row must come exactly once and in order."""
    pieces: dict[Key, list[tuple[tuple[int, ...], Array]]] = {}
    for found in rows:
        for site, values in zip(found.sites, found.values, strict=True):
            pieces.setdefault((found.hook, site, found.part), []).append((found.positions, values))
    out: dict[Key, Captured] = {}
    for key, parts in pieces.items():
        positions = tuple(p for piece, _ in parts for p in piece)
        assert list(positions) == sorted(set(positions)), f"{key}: rows twice or out of order: {positions}"
        attention = key[1].startswith(("attn_scores", "attn_probs"))
        out[key] = Captured(
            positions, _join_keys(key[1], [v for _, v in parts]) if attention else np.concatenate([v for _, v in parts])
        )
    return out


def _join_keys(site: str, parts: list[Array]) -> Array:
    longest = max(part.shape[-1] for part in parts)
    fill = -np.inf if site.startswith("attn_scores") else 0.0
    padded = [np.pad(p, ((0, 0), (0, 0), (0, longest - p.shape[-1])), constant_values=fill) for p in parts]
    return np.concatenate(padded, axis=1)


def run(backend: Backend, tokens: list[int], plan: Plan, **kwargs: Any) -> dict[Key, Captured]:
    """One run alone in its batch."""
    [result] = backend.run([sequence(backend, tokens, plan, **kwargs)])
    if result.error is not None:
        raise result.error
    return collect(result.rows)


@dataclass(slots=True)
class Generated:
    """What came of one generation."""

    tokens: list[int]
    captured: dict[Key, Captured]
    logprobs: list[float | None]
    top: list[tuple[tuple[int, float], ...]]


def generate(
    backend: Backend,
    sequences: list[Sequence],
    *,
    cancel_after: dict[str, int] | None = None,
    failing: Collection[str] = (),
) -> list[Generated]:
    """Step the engine until every sequence has its tokens; `cancel_after` removes some after so many tokens, and those
    that are `failing` must fail."""
    engine = backend.engine
    assert engine is not None
    waiting, rows = list(sequences), {s.id: list[Rows]() for s in sequences}
    logprobs: dict[str, list[float | None]] = {s.id: [] for s in sequences}
    top: dict[str, list[Any]] = {s.id: [] for s in sequences}
    live = {s.id: s for s in sequences}
    while live:
        waiting = [s for s in waiting if not engine.admit(s)]
        for result in engine.step():
            found = result.sequence
            if result.error is not None:
                if found.id not in failing:
                    raise result.error
                del live[found.id]
                continue
            if found.id not in live:
                continue
            rows[found.id] += result.rows
            if result.token is None:
                continue
            logprobs[found.id].append(result.logprob)
            top[found.id].append(result.top)
            limit = (cancel_after or {}).get(found.id, found.sampling.max_new_tokens)
            if found.n_generated >= limit:
                assert found.id not in failing
                engine.remove(found)
                rows[found.id] += flush_reductions(found.plan)
                del live[found.id]
    return [Generated(s.tokens, collect(rows[s.id]), logprobs[s.id], top[s.id]) for s in sequences]


def every_site(backend: Backend, mode: str = "run") -> Plan:
    """Capture all that the model offers."""
    names = [
        site.name + (".*" if site.layers is not None else "")
        for site in backend.info.sites
        if (site.run if mode == "run" else site.generate)
    ]
    return Plan(tuple(Hook(name, capture=Capture()) for name in names))


def relative_error(found: Array, expected: Array) -> float:
    """max |found − expected| ÷ max |expected|, over finite entries; infinities must agree."""
    found, expected = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert found.shape == expected.shape, (found.shape, expected.shape)
    finite = np.isfinite(expected)
    assert (np.isfinite(found) == finite).all(), "masked entries differ"
    if not finite.any():
        return 0.0
    scale = max(float(np.abs(expected[finite]).max()), 1e-9)
    return float(np.abs(found[finite] - expected[finite]).max()) / scale


def assert_same(found: dict[Key, Captured], expected: dict[Key, Captured], tolerance: float) -> None:
    """Every capture that `found` has equals the same rows of `expected`; a condition may have let none through."""
    expected = {key: want for key, want in expected.items() if want.positions or want.values.size}
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    worst: tuple[float, Key] = (0.0, (0, "", ""))
    for key, got in found.items():
        want = expected[key]
        values = want.values
        if got.positions != want.positions:
            at = [want.positions.index(p) for p in got.positions]
            assert at == list(range(at[0], at[-1] + 1)), f"{key}: rows are missing between {got.positions}"
            values = values[:, at] if key[1].startswith(("attn_scores", "attn_probs")) else values[at]
        if key[1].startswith(("attn_scores", "attn_probs")):
            values = values[..., : got.values.shape[-1]]
        worst = max(worst, (relative_error(got.values, values), key))
    assert worst[0] <= tolerance, f"relative error {worst[0]:.2e} at {worst[1]} is above {tolerance:.0e}"


def results_error(results: list[StepResult]) -> list[str]:
    """Messages of the results that failed."""
    return [r.error.message for r in results if r.error is not None]
