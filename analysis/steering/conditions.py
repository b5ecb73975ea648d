"""Conditions found from examples: steer only where the prompt is of a kind. After conditional activation steering (Lee et al. 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Condition, Hook, Tensor
from ...clients.requests.prompts import Prompt, to_input
from ...protos.errors import InvalidArgument
from ..ablation.probes import auroc
from .vectors import direction_of, pooled_rows

__all__ = ["FittedCondition", "conditional", "fit_condition"]

Floats = NDArray[np.float64]
Pool = Literal["mean", "last"]


@dataclass(frozen=True, slots=True, eq=False)
class FittedCondition:
    """A direction and a threshold that tell prompts of a kind from others, and how well on prompts not used."""

    condition: Condition
    f1: float
    """On the held-out half."""
    f1_interval: tuple[float, float]
    """95 %, bootstrap over prompts."""
    auroc: float
    auroc_interval: tuple[float, float]
    shuffled_f1: float
    """Mean of the same search with labels dealt anew, on the held-out half: what the search finds in nothing."""
    train_f1: float
    site: str
    method: str
    by_site: tuple[tuple[str, float], ...]
    """(site, best F1 on the training half)."""

    def __str__(self) -> str:
        low, high = self.f1_interval
        return (
            f"{self.site}, {self.method}, threshold {self.condition.threshold:.3f}: held-out F1 {self.f1:.2f} [{low:.2f}, {high:.2f}], "
            f"AUROC {self.auroc:.2f}, with labels shuffled F1 {self.shuffled_f1:.2f}"
        )


def fit_condition(
    client: Client,
    positives: Sequence[Prompt],
    negatives: Sequence[Prompt],
    *,
    sites: str | Sequence[str] = "resid_post.*",
    pool: Pool = "mean",
    latch: bool = True,
    n_shuffles: int = 10,
    seed: int = 0,
    model: str = "",
) -> FittedCondition:
    """A condition that is true of prompts like `positives`; for the others swap the two.

    Every second prompt of either kind is for training: at each site the difference of means and the first component of
    all rows are tried, the coordinate read as a cosine, the threshold chosen by F1. The best of the training half is
    judged on the other. `pool` and the latch match: a mean over the prompt's rows, or its last row. Without `latch`
    every row decides for itself, by what was fitted on pooled rows. Raises InvalidArgument for fewer than 4 of a kind.
    """
    if min(len(positives), len(negatives)) < 4:
        raise InvalidArgument(
            f"a condition takes 4 prompts of either kind at least, got {len(positives)} and {len(negatives)}"
        )
    named = [
        str(site)
        for one in ([sites] if isinstance(sites, str) else sites)
        for site in client.describe(model=model).expand(one)
    ]
    ones, zeros = (_rows(client, prompts, named, pool, model) for prompts in (positives, negatives))
    labels = np.repeat([1, 0], [len(positives), len(negatives)])
    rows = {site: np.concatenate([ones[site], zeros[site]]) for site in named}
    train = np.concatenate([np.arange(len(positives)) % 2 == 0, np.arange(len(negatives)) % 2 == 0])
    best, by_site = _search(rows, labels, train)
    rng = np.random.default_rng(seed)
    shuffled: list[float] = []
    for _ in range(n_shuffles):
        dealt = labels.copy()
        dealt[train], dealt[~train] = rng.permutation(labels[train]), rng.permutation(labels[~train])
        found, _ = _search(rows, dealt, train)
        shuffled.append(_f1(found.scores(rows)[~train] > found.threshold, dealt[~train]))
    scores, held = best.scores(rows)[~train], labels[~train]
    draws = np.array([_drawn(scores, held, best.threshold, rng) for _ in range(2000)])
    edges = np.quantile(draws, [0.025, 0.975], axis=0)
    direction = Tensor.of(best.direction.astype(np.float32))
    condition = Condition(
        best.threshold, site=best.site, direction=direction, latch=pool if latch else None, normalise=True
    )
    return FittedCondition(
        condition, _f1(scores > best.threshold, held), (float(edges[0, 0]), float(edges[1, 0])), auroc(scores, held),
        (float(edges[0, 1]), float(edges[1, 1])), float(np.mean(shuffled)) if shuffled else float("nan"), best.f1, best.site,
        best.method, tuple(by_site.items()),
    )  # fmt: skip


def conditional(hooks: Sequence[Hook], condition: FittedCondition | Condition) -> list[Hook]:
    """The hooks, each acting only where the condition holds. Raises InvalidArgument for one that has a condition already."""
    when = condition.condition if isinstance(condition, FittedCondition) else condition
    found: list[Hook] = []
    for one in hooks:
        if one.where.when is not None:
            raise InvalidArgument(f"the hook at {one.site} has a condition; join both with AllOf or AnyOf yourself")
        found.append(replace(one, where=replace(one.where, when=when)))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    site: str
    method: str
    direction: Floats
    """[width], of length 1."""
    threshold: float
    f1: float

    def scores(self, rows: dict[str, Floats]) -> Floats:
        """[prompt]."""
        return rows[self.site] @ self.direction


def _rows(client: Client, prompts: Sequence[Prompt], sites: Sequence[str], pool: Pool, model: str) -> dict[str, Floats]:
    """Site → [prompt, width]: what a latched cosine reads, the mean of a prompt's rows of length 1, or its last."""
    if pool == "last":
        found = pooled_rows(client, prompts, sites, pool="last", model=model)
        return {site: rows / np.linalg.norm(rows, axis=1, keepdims=True) for site, rows in found.items()}
    out: dict[str, list[Floats]] = {site: [] for site in sites}
    for start in range(0, len(prompts), 16):
        items = [to_input(prompt, str(i)) for i, prompt in enumerate(prompts[start : start + 16])]
        run = client.run(items, capture=list(sites), model=model, progress=False)
        for item in run.inputs.values():
            for site in sites:
                rows = np.asarray(item[site], dtype=np.float64)
                out[site].append((rows / np.linalg.norm(rows, axis=1, keepdims=True)).mean(axis=0))
    return {site: np.stack(rows) for site, rows in out.items()}


def _search(
    rows: dict[str, Floats], labels: NDArray[np.int64], train: NDArray[np.bool_]
) -> tuple[_Candidate, dict[str, float]]:
    """The site, direction and threshold of the best F1 on the training half; the widest gap decides between equals."""
    best: tuple[tuple[float, float], _Candidate] | None = None
    by_site: dict[str, float] = {}
    for site, all_rows in rows.items():
        own, marks = all_rows[train], labels[train]
        ones, zeros = own[marks == 1], own[marks == 0]
        try:
            mean = direction_of(ones, zeros, "difference of means")
        except InvalidArgument:  # rows that are alike tell nothing
            by_site[site] = 0.0
            continue
        component = np.linalg.svd(own - own.mean(axis=0), full_matrices=False)[2][0]
        component = component if component @ mean >= 0 else -component
        for method, direction in (("difference of means", mean), ("first component", component)):
            threshold, f1, gap = _threshold(own @ direction, marks)
            by_site[site] = max(by_site.get(site, 0.0), f1)
            if best is None or (f1, gap) > best[0]:
                best = (f1, gap), _Candidate(site, method, direction, threshold, f1)
    if best is None:
        raise InvalidArgument("the prompts' rows do not differ at any of the sites")
    return best[1], by_site


def _threshold(scores: Floats, labels: NDArray[np.int64]) -> tuple[float, float, float]:
    """(threshold, F1, gap in deviations): midway between two neighbouring scores, of those with the best F1 the widest apart."""
    ordered = np.unique(scores)
    middles, gaps = (ordered[1:] + ordered[:-1]) / 2, np.diff(ordered)
    f1 = np.array([_f1(scores > at, labels) for at in middles])
    among = np.flatnonzero(f1 == f1.max())
    chosen = among[int(np.argmax(gaps[among]))]
    return float(middles[chosen]), float(f1[chosen]), float(gaps[chosen] / scores.std())


def _f1(said: NDArray[np.bool_], labels: NDArray[np.int64]) -> float:
    """2·true positives ÷ (said + there): 0 where nothing is right."""
    return float(2 * (said & (labels == 1)).sum() / max(said.sum() + (labels == 1).sum(), 1))


def _drawn(
    scores: Floats, labels: NDArray[np.int64], threshold: float, rng: np.random.Generator
) -> tuple[float, float]:
    """(F1, AUROC) of as many prompts of either kind, drawn with replacement."""
    drawn = np.concatenate(
        [rng.choice(np.flatnonzero(labels == kind), size=int((labels == kind).sum())) for kind in (1, 0)]
    )
    return _f1(scores[drawn] > threshold, labels[drawn]), auroc(scores[drawn], labels[drawn])
