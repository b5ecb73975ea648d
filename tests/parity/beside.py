"""Two random requests in one batch, held against each alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from probewire.backends.deltas.factors import BoundUse
from probewire.backends.hooks.base import Backend
from probewire.backends.hooks.captures import flush_reductions
from probewire.backends.hooks.run_parts import RunParts
from probewire.backends.hooks.sequence import Rows, Sequence
from probewire.protos.spec import Plan, Where
from tests.parity.harness import Array, sequence
from tests.parity.random_plans import RandomPlans
from tests.parity.random_variants import random_variants

__all__ = ["MOST", "Beside"]

MOST = 1e-5
"""Relative error that counts as rounding in float32."""
N_NEW = 5

Request = tuple[list[int], Plan, tuple[BoundUse, ...]]
Outcome = tuple[list[int], dict[Any, Array], str]
"""Sampled tokens; rows by (hook, site, part, positions); what was said instead."""


class Beside:
    """One model, whose answers to a request must not depend on who else asks."""

    def __init__(self, backend: Backend) -> None:
        self.backend, self.plans, self.variants = backend, RandomPlans(backend), random_variants(backend)

    def run(self, seed: int) -> tuple[float, str]:
        """The worst difference between a request beside another and alone, in a run; and where it is."""
        requests = self._requests(seed, "run")
        alone = [self._ran([request])[0] for request in requests]
        return _worst(alone, self._ran(requests), requests)

    def in_parts(self, tokens: list[int], plan: Plan, stops: list[int]) -> tuple[float, str]:
        """The worst difference between a run in parts and in one forward."""
        request = (tokens, plan, self._uses(np.random.default_rng(len(tokens))))
        [made], parts, result = self._bound([request], "run"), RunParts(), None
        for stop in stops:
            result = self.backend.run_part(made, parts, stop)
            if result.error is not None:
                break
        assert result is not None
        cut = ([], _by_key(result.rows), "" if result.error is None else result.error.message)
        return _worst(self._ran([request]), [cut], [request], same_keys=True)

    def generate(self, seed: int) -> tuple[float, str]:
        """The same in a generation. Tokens that differ count as 1."""
        requests = self._requests(seed, "generate")
        alone = [self._generated([request])[0] for request in requests]
        return _worst(alone, self._generated(requests), requests)

    def _requests(self, seed: int, mode: str) -> list[Request]:
        rng = np.random.default_rng(seed)
        requests: list[Request] = []
        for _ in range(2):
            tokens = [int(t) for t in rng.integers(0, 256, size=int(rng.integers(2, 20)))]
            n_rows = len(tokens) if mode == "run" else len(tokens) + N_NEW - 1
            requests.append((tokens, self.plans.plan(rng, tokens, mode, n_rows), self._uses(rng)))
        return requests

    def _uses(self, rng: np.random.Generator) -> tuple[BoundUse, ...]:
        """No variant, or some of three: at several strengths, everywhere or at some rows."""
        wheres = (
            Where(),
            Where(),
            Where(phase="generated"),
            Where(positions=(0, -1)),
            Where(token_ids=tuple(range(128))),
        )
        return tuple(
            BoundUse(
                self.variants[int(rng.integers(3))], float(rng.choice([1.0, 0.5, -1.0])), wheres[int(rng.integers(5))]
            )
            for _ in range(int(rng.integers(3)))
        )

    def _bound(self, requests: list[Request], mode: str) -> list[Sequence]:
        made: list[Sequence] = []
        for i, (tokens, plan, uses) in enumerate(requests):
            one = sequence(self.backend, tokens, plan, mode=mode, max_new=N_NEW, name=f"r{i}", saes=self.plans.saes)
            one.plan.uses = uses
            made.append(one)
        return made

    def _ran(self, requests: list[Request]) -> list[Outcome]:
        results = self.backend.run(self._bound(requests, "run"))
        return [([], _by_key(r.rows), "" if r.error is None else r.error.message) for r in results]

    def _generated(self, requests: list[Request]) -> list[Outcome]:
        engine, sequences = self.backend.engine, self._bound(requests, "generate")
        assert engine is not None
        rows: dict[str, list[Rows]] = {s.id: [] for s in sequences}
        said = {s.id: "" for s in sequences}
        for each in sequences:
            assert engine.admit(each)
        live = {s.id for s in sequences}
        while live:
            for result in engine.step():
                name = result.sequence.id
                if name not in live:
                    continue
                if result.error is not None:
                    said[name] = result.error.message
                    live.discard(name)
                    continue
                rows[name] += result.rows
                if result.sequence.n_generated >= N_NEW:
                    rows[name] += flush_reductions(result.sequence.plan)
                    engine.remove(result.sequence)
                    live.discard(name)
        return [(s.tokens[s.prompt_length :], _by_key(rows[s.id]), said[s.id]) for s in sequences]


def _by_key(rows: Any) -> dict[Any, Array]:
    """Row by row: how rows come in steps and chunks may differ."""
    out: dict[Any, Array] = {}
    for found in rows:
        for site, values in zip(found.sites, found.values, strict=True):
            per_row = np.swapaxes(values, 0, 1) if site.startswith(("attn_scores", "attn_probs")) else values
            for i, position in enumerate(found.positions or (-1,)):
                out[found.hook, site, found.part, position] = per_row[i]
    return out


def _worst(
    alone: list[Outcome], beside: list[Outcome], requests: list[Request], *, same_keys: bool = False
) -> tuple[float, str]:
    worst, what = 0.0, ""
    for i, (one, two) in enumerate(zip(alone, beside, strict=True)):
        if one[2] != two[2] or one[1].keys() != two[1].keys():
            return 1.0, f"request {i}: alone {one[2] or 'well'}, beside another {two[2] or 'well'}: {requests}"
        if one[0] != two[0]:
            return 1.0, f"request {i}: tokens {one[0]} alone, {two[0]} beside another: {requests}"
        sizes: dict[Any, float] = {}
        for (hook, site, part, _), row in one[1].items():
            finite = np.abs(np.where(np.isfinite(row), row, 0.0)).max(initial=0.0)
            sizes[hook, site, part] = max(sizes.get((hook, site, part), 0.0), float(finite), 1e-6)
        for key, row in one[1].items():
            row, other = (row, two[1][key]) if same_keys else _of_one_length(key[1], row, two[1][key])
            if row.shape != other.shape:
                return np.inf, f"request {i}, {key}: {row.shape} and {other.shape}: {requests}"
            with np.errstate(invalid="ignore"):
                gap = np.where(row == other, 0.0, np.abs(row.astype(np.float64) - other))
            error = float(gap.max(initial=0.0)) / sizes[key[:3]]
            if not error <= worst:
                worst, what = error, f"request {i}, {key}: {error:.3g} off: {requests}"
    return worst, what


def _of_one_length(site: str, row: Array, other: Array) -> tuple[Array, Array]:
    """Rows of a prompt's chunk have as many keys as the chunk's last, and a neighbour changes the chunks: the rest is masked."""
    if not site.startswith(("attn_scores", "attn_probs")):
        return row, other
    n, fill = max(row.shape[-1], other.shape[-1]), -np.inf if site.startswith("attn_scores") else 0.0
    row, other = (np.pad(x, ((0, 0), (0, n - x.shape[-1])), constant_values=fill) for x in (row, other))
    return row, other
