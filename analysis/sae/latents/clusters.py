"""Latents that belong together: by the direction they write, and by the tokens at which they fire."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....clients import Client
from ....protos.errors import InvalidArgument
from ....protos.saes import SaeInfo
from ..data.corpus import Texts
from .stream import CONTEXT, TextWindow, stream_latents

__all__ = ["Cluster", "Clusters", "Coactivation", "cluster_latents", "cosines", "count_coactivation"]

Floats = NDArray[np.float64]

MAX_LATENTS = 4096
"""Clustered at once: the similarities are a square matrix, and its clustering takes the cube of its side at worst."""
NAME_TOKENS = 3


@dataclass(slots=True, eq=False)
class Coactivation:
    """How often each two of some latents fire at the same token, and at which tokens each fires."""

    latents: NDArray[np.int64]
    """[latent]: ids."""
    together: NDArray[np.int64]
    """[latent, latent]: tokens at which both fire; the diagonal: at which the one does."""
    mass: list[dict[int, float]]
    """[latent]: token id → sum of activations there."""
    seen: dict[int, int]
    """Token id → how often it was read."""
    tokens: dict[int, str]
    """Token id → text."""
    n_tokens: int = 0

    @classmethod
    def empty(cls, latents: Sequence[int] | NDArray[np.integer]) -> Coactivation:
        """Nothing counted yet. Raises InvalidArgument for latents named twice, fewer than two, or too many."""
        ids = np.array(latents, dtype=np.int64)
        if len(np.unique(ids)) != len(ids) or not 2 <= len(ids) <= MAX_LATENTS:
            raise InvalidArgument(
                f"give 2 to {MAX_LATENTS} distinct latents to cluster, got {len(ids)} ({len(np.unique(ids))} distinct)"
            )
        return cls(ids, np.zeros((len(ids), len(ids)), dtype=np.int64), [{} for _ in ids], {}, {})

    def add(self, window: TextWindow) -> None:
        """Count one more window, in place."""
        values = window.dense(self.latents)
        fires = (values > 0).astype(np.float32)
        self.together += np.rint(fires.T @ fires).astype(np.int64)
        self.n_tokens += window.n_rows
        self.tokens.update(zip(window.token_ids, window.tokens, strict=True))
        for token in window.token_ids[window.skipped :]:
            self.seen[token] = self.seen.get(token, 0) + 1
        for row, column in zip(*np.nonzero(values), strict=True):
            token = window.token_ids[int(row) + window.skipped]
            mass = self.mass[int(column)]
            mass[token] = mass.get(token, 0.0) + float(values[row, column])

    @property
    def jaccard(self) -> Floats:
        """[latent, latent]: tokens at which both fire, as a share of those at which either does; 0 for two that never fire."""
        fired = np.diag(self.together)
        either = fired[:, None] + fired[None, :] - self.together
        return self.together / np.maximum(either, 1)


@dataclass(frozen=True, slots=True)
class Cluster:
    """Some latents that belong together."""

    name: str
    """The words at which they are active far more than words are frequent."""
    latents: tuple[int, ...]
    """Ids, most central first."""
    similarity: float
    """Mean over its pairs; 1 for a latent alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Clusters:
    """All clusters, largest first."""

    clusters: tuple[Cluster, ...]
    latents: NDArray[np.int64]
    """[latent]: ids."""
    similarity: Floats
    """[latent, latent]"""
    silhouette: float | None
    """Mean silhouette of the clustering by 1 − similarity, −1 … 1; None for one cluster, or all alone."""

    @property
    def labels(self) -> dict[int, int]:
        """Latent → index of its cluster."""
        return {latent: index for index, cluster in enumerate(self.clusters) for latent in cluster.latents}

    def __repr__(self) -> str:
        shown = "; ".join(f"{c.name} ({len(c.latents)})" for c in self.clusters[:5])
        return f"Clusters({len(self.latents)} latents in {len(self.clusters)}: {shown})"


def count_coactivation(
    client: Client,
    sae: SaeInfo,
    texts: Texts,
    latents: Sequence[int] | NDArray[np.integer],
    *,
    context: int = CONTEXT,
    max_tokens: int | None = None,
    progress: bool = True,
) -> Coactivation:
    """One pass over a corpus through the server. The first token of every window is left out, as `stream_latents` says."""
    found = Coactivation.empty(latents)
    if found.latents.min() < 0 or found.latents.max() >= sae.d_sae:
        raise InvalidArgument(
            f"latents must be in 0 … {sae.d_sae - 1}, got {found.latents.min()} … {found.latents.max()}"
        )
    for window in stream_latents(client, sae, texts, context=context, max_tokens=max_tokens, progress=progress):
        found.add(window)
    return found


def cosines(directions: NDArray[np.floating]) -> Floats:
    """[latent, latent]: of decoder rows [latent, d_in]; a row of zeros is at right angles to all others."""
    rows = directions.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(norms == 0, 1, norms)
    found = unit @ unit.T
    np.fill_diagonal(found, 1.0)
    return found


def cluster_latents(
    directions: NDArray[np.floating],
    coactivation: Coactivation,
    *,
    threshold: float = 0.25,
    n_clusters: int | None = None,
    decoder_weight: float = 0.5,
) -> Clusters:
    """Agglomerate latents (average linkage) by w·max(cosine, 0) + (1 − w)·Jaccard, w `decoder_weight`.

    `directions`: decoder rows of `coactivation.latents`, [latent, d_in]. Clusters are joined while their mean
    similarity is at least `threshold`; or until `n_clusters` are left, which then decides alone. Needs scikit-learn
    (the extra `analysis`). Raises InvalidArgument for rows that do not pair with the latents, or wrong bounds.
    """
    n = len(coactivation.latents)
    if directions.ndim != 2 or len(directions) != n:
        raise InvalidArgument(f"directions have shape {list(directions.shape)}; give a row for each of {n} latents")
    if not 0 <= decoder_weight <= 1 or not 0 < threshold <= 1:
        raise InvalidArgument(
            f"decoder_weight is 0 … 1 and threshold above 0, up to 1; got {decoder_weight}, {threshold}"
        )
    if n_clusters is not None and not 1 <= n_clusters <= n:
        raise InvalidArgument(f"n_clusters must be in 1 … {n}, got {n_clusters}")
    similarity = decoder_weight * np.maximum(cosines(directions), 0) + (1 - decoder_weight) * coactivation.jaccard
    np.fill_diagonal(similarity, 1.0)
    distance = np.clip(1 - similarity, 0, None)
    cluster: Any = import_module("sklearn.cluster")
    fitted = cluster.AgglomerativeClustering(
        n_clusters=n_clusters,
        metric="precomputed",
        linkage="average",
        distance_threshold=None if n_clusters is not None else 1 - threshold + 1e-12,
    ).fit(distance)
    labels: NDArray[np.intp] = fitted.labels_
    groups = [np.flatnonzero(labels == label) for label in range(int(labels.max()) + 1)]
    found = [_cluster(members, similarity, coactivation) for members in groups]
    found.sort(key=lambda item: (-len(item.latents), -item.similarity, item.latents))
    return Clusters(tuple(found), coactivation.latents, similarity, _silhouette(distance, labels))


def _cluster(members: NDArray[np.intp], similarity: Floats, counted: Coactivation) -> Cluster:
    own = similarity[np.ix_(members, members)]
    n = len(members)
    central = members[np.argsort(-own.sum(axis=1), kind="stable")]
    mean = float((own.sum() - n) / (n * (n - 1))) if n > 1 else 1.0
    name = _name(members, counted)
    return Cluster(name, tuple(counted.latents[central].tolist()), mean)


def _name(members: NDArray[np.intp], counted: Coactivation) -> str:
    """The tokens that add most to KL(the members' activation ‖ the corpus): p·log(p/q) by word.

    p is the mean of each member's share of its own activation, so that a loud one does not decide; q the word's share of
    the corpus, so that words do not win by being everywhere.
    """
    p: dict[str, float] = {}
    q: dict[str, float] = {}
    for mass in (counted.mass[int(i)] for i in members):
        total = sum(mass.values())
        for token, value in mass.items():
            word = _word(counted.tokens[token])
            p[word] = p.get(word, 0.0) + value / total / len(members)
    for token, times in counted.seen.items():
        word = _word(counted.tokens[token])
        q[word] = q.get(word, 0.0) + times / counted.n_tokens
    gain = {word: share * float(np.log(share / q[word])) for word, share in p.items()}
    return ", ".join(sorted(gain, key=lambda word: (-gain[word], word))[:NAME_TOKENS]) or "never fires"


def _word(token: str) -> str:
    return token.strip() or repr(token)


def _silhouette(distance: Floats, labels: NDArray[np.intp]) -> float | None:
    if not 2 <= len(np.unique(labels)) < len(labels):
        return None
    metrics: Any = import_module("sklearn.metrics")
    own = distance.copy()
    np.fill_diagonal(own, 0.0)
    return float(metrics.silhouette_score(own, labels, metric="precomputed"))
