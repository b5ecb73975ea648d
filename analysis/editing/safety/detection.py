"""Telling prompts of a kind from others by what the model makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....clients import Client
from ....clients.requests.prompts import Prompt
from ....protos.errors import InvalidArgument
from ...ablation.probes import Probe, auroc, fit_probe
from ...reports.statistics import wilson
from ...steering.vectors import pooled_rows

__all__ = ["Detector", "detector"]

Floats = NDArray[np.float64]
RECALL = 0.95


@dataclass(frozen=True, slots=True, eq=False)
class Detector:
    """A logistic probe at a site, and how it did on prompts that it was not fitted to."""

    site: str
    probe: Probe
    threshold: float
    """On the probe's score: 95 % of the training half's positives lie above it."""
    auroc: float
    recall: float
    false_positives: float
    """Share of held-out negatives above the threshold."""
    false_positive_interval: tuple[float, float]
    """Wilson, 95 %."""
    n: tuple[int, int]
    """Held-out positives and negatives."""

    def scores(self, client: Client, prompts: Sequence[Prompt], *, model: str = "") -> Floats:
        """[prompt]: above `threshold` says that a prompt is of the kind."""
        return self.probe.scores(pooled_rows(client, prompts, [self.site], pool="last", model=model)[self.site])

    def __str__(self) -> str:
        low, high = self.false_positive_interval
        return (
            f"{self.site}: held-out AUROC {self.auroc:.2f}, recall {self.recall:.0%} at {self.false_positives:.0%} false positives "
            f"[{low:.0%}, {high:.0%}] ({self.n[0]} + {self.n[1]} prompts)"
        )


def detector(
    client: Client,
    positives: Sequence[Prompt],
    negatives: Sequence[Prompt],
    *,
    sites: str | Sequence[str] = "resid_post.*",
    c: float = 1.0,
    model: str = "",
) -> Detector:
    """A probe of a prompt's last row. Every second prompt of a kind is for training; among sites the fourfold split of these decides.

    Raises InvalidArgument for fewer than 8 of a kind.
    """
    if min(len(positives), len(negatives)) < 8:
        raise InvalidArgument(
            f"a detector takes 8 prompts of either kind at least, got {len(positives)} and {len(negatives)}"
        )
    info = client.describe(model)
    named = [str(site) for one in ([sites] if isinstance(sites, str) else sites) for site in info.expand(one)]
    ones, zeros = (pooled_rows(client, prompts, named, pool="last", model=model) for prompts in (positives, negatives))
    labels = np.repeat([1, 0], [len(positives), len(negatives)])
    train = np.concatenate([np.arange(len(positives)) % 2 == 0, np.arange(len(negatives)) % 2 == 0])
    rows = {site: np.concatenate([ones[site], zeros[site]]) for site in named}
    best = max(named, key=lambda site: _split_auroc(rows[site][train], labels[train], c))
    probe = fit_probe(rows[best][train], labels[train], c=c)
    scores = probe.scores(rows[best])
    threshold = float(np.quantile(scores[train & (labels == 1)], 1 - RECALL, method="lower"))
    held, marks = scores[~train], labels[~train]
    wrong, of = int((held[marks == 0] >= threshold).sum()), int((marks == 0).sum())
    return Detector(
        best, probe, threshold, auroc(held, marks), float((held[marks == 1] >= threshold).mean()), wrong / of, wilson(wrong, of),
        (int((marks == 1).sum()), of),
    )  # fmt: skip


def _split_auroc(rows: Floats, labels: NDArray[np.int64], c: float) -> float:
    """Mean over four folds, each scored by a probe without it."""
    fold = np.concatenate([np.arange(int((labels == kind).sum())) % 4 for kind in (1, 0)])
    found: list[float] = []
    for one in range(4):
        held = fold == one
        if len(np.unique(labels[held])) == len(np.unique(labels[~held])) == 2:
            found.append(auroc(fit_probe(rows[~held], labels[~held], c=c).scores(rows[held]), labels[held]))
    return float(np.mean(found))
