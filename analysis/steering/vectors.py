"""A steering vector from texts of either kind, and what can be said of it before anything is steered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, SteeringVector, capture
from ...clients.requests.prompts import Prompt, to_input
from ...protos.errors import InvalidArgument
from ..ablation.probes import auroc, fit_probe

__all__ = ["METHODS", "FittedVector", "Method", "direction_of", "pooled_rows", "steering_vector"]

Floats = NDArray[np.float64]
Pool = Literal["mean", "last"]
Method = Literal["difference of means", "pca", "logistic"]
METHODS: tuple[Method, ...] = ("difference of means", "pca", "logistic")
FOLDS = 4


@dataclass(frozen=True, slots=True, eq=False)
class FittedVector:
    """A direction, and how sure it is."""

    site: str
    direction: Floats
    """[width], of length 1; positive texts lie further along it."""
    gap: float
    """Mean coordinate of the positive rows minus that of the negative ones."""
    mean_cosine: float
    """Of single differences with the direction: low predicts that steering is unreliable (Braun et al. 2025)."""
    auroc: float
    """Of texts that a fold did not fit, 4 folds."""
    method: Method
    pool: Pool
    positive: Floats
    """[text, width]: pooled rows."""
    negative: Floats
    model: str = ""
    model_hash: str = ""

    @property
    def vector(self) -> SteeringVector:
        """Its file and what `steer` takes: the direction times the gap."""
        made = f"{self.method} of {len(self.positive)} and {len(self.negative)} texts, pooled by {self.pool}"
        details = {"auroc": f"{self.auroc:.4f}", "mean_cosine": f"{self.mean_cosine:.4f}"}
        found = {self.site: (self.direction * self.gap).astype(np.float32)}
        return SteeringVector(found, self.model, self.model_hash, made, details)

    def shuffled(self, rng: np.random.Generator) -> Floats:
        """[width], of length 1: the direction of the same rows with half of the labels exchanged, pair by pair where they pair."""
        if (
            len(self.positive) == len(self.negative) and self.method != "pca"
        ):  # the axis of flipped differences is the same
            signs = rng.permutation(np.where(np.arange(len(self.positive)) % 2, 1.0, -1.0))[:, None]
            middle, half = (self.positive + self.negative) / 2, (self.positive - self.negative) / 2 * signs
            return direction_of(middle + half, middle - half, self.method)
        both = np.concatenate([self.positive, self.negative])
        order = rng.permutation(len(both))
        return direction_of(both[order[: len(self.positive)]], both[order[len(self.positive) :]], self.method)

    def __str__(self) -> str:
        return (
            f"{self.site}, {self.method}: gap {self.gap:.3g}, mean cosine {self.mean_cosine:.2f}, held-out AUROC {self.auroc:.2f} "
            f"({len(self.positive)} + {len(self.negative)} texts)"
        )


def steering_vector(
    client: Client,
    positive: Sequence[Prompt],
    negative: Sequence[Prompt],
    site: str,
    *,
    pool: Pool = "mean",
    method: Method = "difference of means",
    model: str = "",
) -> FittedVector:
    """The direction of a concept at a site [pos, width], from texts that have it and texts that have not.

    `pool`: the mean over a text's tokens but the first (which holds most of the norm and says nothing of the text), or its
    last. `pca`: first component of the differences, pair by pair. `logistic`: of a probe's weights on rows of unit variance.
    Raises InvalidArgument for too few texts, sites with heads, and `pca` of unequal numbers.
    """
    if min(len(positive), len(negative)) < 2 or method not in METHODS or pool not in ("mean", "last"):
        raise InvalidArgument(
            f"a vector takes 2 texts of either kind at least (got {len(positive)} and {len(negative)}), a method of {', '.join(METHODS)} "
            f"(got {method!r}), and pool mean or last (got {pool!r})"
        )
    info = client.describe(model=model)
    ones, zeros = (pooled_rows(client, texts, [site], pool=pool, model=model)[site] for texts in (positive, negative))
    direction = direction_of(ones, zeros, method)
    gap = float((ones @ direction).mean() - (zeros @ direction).mean())
    differences = ones - zeros if len(ones) == len(zeros) else ones - zeros.mean(axis=0)
    lengths = np.linalg.norm(differences, axis=1)
    cosines = np.divide(differences @ direction, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    held_out = _held_out_auroc(ones, zeros, method)
    return FittedVector(
        site, direction, gap, float(cosines.mean()), held_out, method, pool, ones, zeros, info.id, info.model_hash
    )


def pooled_rows(
    client: Client, texts: Sequence[Prompt], sites: Sequence[str], *, pool: Pool = "mean", model: str = ""
) -> dict[str, Floats]:
    """Site → [text, width], float64. Raises InvalidArgument for a text of one token, and for sites with heads."""
    found: dict[str, list[Floats]] = {}
    for start in range(0, len(texts), 32):
        items = [to_input(text, str(i)) for i, text in enumerate(texts[start : start + 32])]
        where = {"positions": -1} if pool == "last" else {"spans": [(1, None)]}
        reads = [capture(site, reduce=None if pool == "last" else "mean", **where) for site in sites]  # pyright: ignore[reportArgumentType] - one of two options
        run = client.run(items, capture=reads, model=model, progress=False)
        for item in items:
            captures = run.inputs[item.name]
            for site in captures.captures:
                row = np.asarray(captures[site], dtype=np.float64)
                row = row[0] if pool == "last" or row.ndim == 2 else row
                if row.ndim != 1:
                    raise InvalidArgument(f"{site} has heads; read a site of one vector a token, such as resid_post")
                found.setdefault(site, []).append(row)
    return {site: np.stack(rows) for site, rows in found.items()}


def direction_of(ones: Floats, zeros: Floats, method: Method) -> Floats:
    """[width], of length 1. Raises InvalidArgument where the rows do not differ."""
    mean = ones.mean(axis=0) - zeros.mean(axis=0)
    if method == "pca":
        if len(ones) != len(zeros):
            raise InvalidArgument(f"pca takes pairs; there are {len(ones)} and {len(zeros)} texts")
        direction = np.linalg.svd(ones - zeros, full_matrices=False)[2][0]
        direction = direction if direction @ mean >= 0 else -direction
    elif method == "logistic":
        labels = np.repeat([1, 0], [len(ones), len(zeros)])
        direction = fit_probe(np.concatenate([ones, zeros]), labels).direction
    else:
        direction = mean
    length = float(np.linalg.norm(direction))
    if not length > 0:
        raise InvalidArgument("the texts' rows do not differ, so there is no direction between them")
    return direction / length


def _held_out_auroc(ones: Floats, zeros: Floats, method: Method) -> float:
    """Of each text, by the direction of the folds without it; scores are centred a fold, which has its own scale."""
    folds = min(FOLDS, len(ones), len(zeros))
    scores: list[Floats] = []
    labels: list[int] = []
    for fold in range(folds):
        held = [np.arange(len(rows)) % folds == fold for rows in (ones, zeros)]
        if method == "pca" and len(ones) != len(zeros):
            continue
        left = ones[~held[0]], zeros[~held[1]]
        direction = direction_of(*left, method)
        middle = (left[0] @ direction).mean() / 2 + (left[1] @ direction).mean() / 2
        for rows, mask, label in ((ones, held[0], 1), (zeros, held[1], 0)):
            scores.append(rows[mask] @ direction - middle)
            labels += [label] * int(mask.sum())
    return auroc(np.concatenate(scores), np.array(labels))
