"""An affine map between the residual streams of two models, fitted on tokens that end at the same character."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Input, capture
from ...protos.errors import InvalidArgument
from ...protos.model import ModelInfo, Tokenized

__all__ = ["Held", "ModelMap", "Place", "fit_map", "matched_positions", "random_map"]

Floats = NDArray[np.float64]
Place = Client | tuple[Client, str]
"""A client, or a client and one of its models."""
Kind = Literal["ridge", "procrustes"]
"""ridge: any matrix, by least squares. procrustes: a rotation (semi-orthogonal where widths differ), U Vᵀ of H_tᵀH_s."""

MASSIVE = 10.0
"""Rows of a norm over so many times the median are left out, as first tokens are: they would be all that is fitted."""
NO_TRANSFER = 0.3


@dataclass(frozen=True, slots=True)
class Held:
    """How well a map does on texts that it was not fitted to."""

    r2: float
    n_rows: int

    @property
    def usable(self) -> bool:
        """R² of .3 or more: below, nothing should be handed over by it."""
        return self.r2 >= NO_TRANSFER


@dataclass(frozen=True, slots=True, eq=False)
class ModelMap:
    """h_target ≈ T h_source + b at a pair of layers."""

    matrix: Floats
    """T, [d_target, d_source]."""
    bias: Floats
    """b, [d_target]."""
    site: str
    """Kind of site on both sides: resid_post."""
    layers: tuple[int, int]
    """(source, target)."""
    kind: str
    held: Held
    n_rows: int
    """That it was fitted to."""
    hashes: tuple[str, str] = ("", "")
    """Of the two models' weights."""
    by_layer: Mapping[int, float] = field(default_factory=dict[int, float])
    """Held-out R² at each target layer that was tried."""
    note: str = ""

    def rows(self, values: Any) -> Floats:
        """[row, d_source] → [row, d_target]."""
        found: Floats = np.asarray(values, dtype=np.float64) @ self.matrix.T + self.bias
        return found

    def directions(self, values: Any) -> Floats:
        """Differences and directions, [..., d_source] → [..., d_target]: without b."""
        found: Floats = np.asarray(values, dtype=np.float64) @ self.matrix.T
        return found

    def __str__(self) -> str:
        one, other = (f"{self.site}.{layer}" for layer in self.layers)
        said = "" if self.held.usable else f"; no transfer: below {NO_TRANSFER:g}"
        return f"{self.kind} {one} → {other}: held-out R² {self.held.r2:.3f} ({self.held.n_rows} rows){said}"


def fit_map(
    source: Place,
    target: Place,
    texts: Sequence[str],
    layers: tuple[int, int | None],
    *,
    kind: Kind = "ridge",
    ridge: float = 1e-2,
    site: str = "resid_post",
    held_out: int = 5,
    shuffled: int | None = None,
) -> ModelMap:
    """Fit the map on texts that both models read; every `held_out`-th text judges it.

    `layers`: (source, target); a target of None tries every layer and takes the one with the best held-out R². `ridge`: times
    the mean eigenvalue of the source's covariance. `shuffled`: a seed by which rows are paired at random: the control, whose
    R² must be near 0. Rows pair where a token of each model ends at the same character; first tokens and massive rows
    are left out. Affine maps within a family carry steering (arXiv 2506.00653); across families learned maps have carried
    safety vectors (Oozeer et al. 2025). Raises InvalidArgument for too few rows.
    """
    if kind not in ("ridge", "procrustes") or not ridge >= 0:
        raise InvalidArgument(f"kind {kind!r} with ridge {ridge!r}; allowed: ridge (of 0 or more), procrustes")
    if held_out < 2 or len(texts) < held_out:
        raise InvalidArgument(
            f"{len(texts)} texts with every {held_out}-th held out: give as many texts at least, and 2 or more"
        )
    infos = [client.describe(model) for client, model in map(_place, (source, target))]
    tried = range(infos[1].n_layers) if layers[1] is None else (layers[1],)
    given, found, owners = _paired(source, target, texts, f"{site}.{layers[0]}", [f"{site}.{layer}" for layer in tried])
    judged = owners % held_out == held_out - 1
    order = (
        np.arange(int((~judged).sum()))
        if shuffled is None
        else np.random.default_rng(shuffled).permutation(int((~judged).sum()))
    )
    maps: dict[int, ModelMap] = {}
    for layer in tried:
        rows = found[f"{site}.{layer}"]
        keep = _usual(given) & _usual(rows)
        fit = keep[~judged]
        x, y = given[~judged][fit], rows[~judged][order][fit]
        if len(x) <= x.shape[1]:
            raise InvalidArgument(
                f"{len(x)} rows to fit a map of {x.shape[1]} dimensions with; give more text, four rows a dimension or more"
            )
        matrix, bias = _fitted(x, y, kind, ridge)
        held = _held(given[judged & keep], rows[judged & keep], matrix, bias, y.mean(axis=0))
        maps[layer] = ModelMap(
            matrix, bias, site, (layers[0], layer), kind, held, len(x), (infos[0].model_hash, infos[1].model_hash)
        )
    best = max(maps.values(), key=lambda one: one.held.r2)
    note = "" if shuffled is None else "fitted on shuffled pairs"
    return replace(best, by_layer={layer: one.held.r2 for layer, one in maps.items()}, note=note)


def random_map(like: ModelMap, seed: int = 0) -> ModelMap:
    """A control: a random (semi-)orthogonal matrix between the same layers, scaled to the same Frobenius norm."""
    rng = np.random.default_rng(seed)
    left, _, right = np.linalg.svd(rng.normal(size=like.matrix.shape), full_matrices=False)
    matrix: Any = left @ right
    scaled = matrix * (np.linalg.norm(like.matrix) / np.linalg.norm(matrix))
    return replace(like, matrix=scaled, held=Held(float("nan"), 0), n_rows=0, note=f"random orthogonal, seed {seed}")


def matched_positions(one: Tokenized, other: Tokenized, text: str) -> list[tuple[int, int]]:
    """Positions of tokens that end at the same character of a text, first tokens left out; none where tokens are no text."""
    ends = [_ends(found, text) for found in (one, other)]
    return [(p, ends[1][end]) for end, p in ends[0].items() if end in ends[1] and p > 0 and ends[1][end] > 0]


def _ends(found: Tokenized, text: str) -> dict[int, int]:
    """Character → the last token that ends there."""
    joined = "".join(found.tokens)
    if not joined.endswith(text):
        return {}
    at, ends = len(text) - len(joined), dict[int, int]()
    for position, token in enumerate(found.tokens):
        at += len(token)
        if at > 0:
            ends[at] = position
    return ends


def _paired(
    source: Place, target: Place, texts: Sequence[str], site: str, sites: Sequence[str]
) -> tuple[Floats, dict[str, Floats], NDArray[np.int64]]:
    """(source rows, target rows by site, the text that each row is of)."""
    (one, model), (other, other_model) = _place(source), _place(target)
    tokens = [(one.tokenize(text, model=model), other.tokenize(text, model=other_model)) for text in texts]
    pairs = [matched_positions(*both, text) for both, text in zip(tokens, texts, strict=True)]
    if not any(pairs):
        raise InvalidArgument("no token of the two models ends at the same character of these texts")
    owners = np.concatenate([np.full(len(places), i) for i, places in enumerate(pairs)])
    given = _rows(one, model, [t[0] for t in tokens], [[p for p, _ in places] for places in pairs], [site])[site]
    found = _rows(other, other_model, [t[1] for t in tokens], [[p for _, p in places] for places in pairs], sites)
    return given, found, owners


def _rows(
    client: Client, model: str, tokens: Sequence[Tokenized], places: Sequence[Sequence[int]], sites: Sequence[str]
) -> dict[str, Floats]:
    inputs = [Input(token_ids=one.token_ids, name=str(i)) for i, one in enumerate(tokens) if places[i]]
    found: dict[str, list[Floats]] = {site: [] for site in sites}
    for start in range(0, len(inputs), 32):
        run = client.run(inputs[start : start + 32], capture=[capture(s) for s in sites], model=model, progress=False)
        for item in inputs[start : start + 32]:
            for site in sites:
                rows: Floats = np.asarray(run.inputs[item.name][site], dtype=np.float64)
                found[site].append(rows[list(places[int(item.name)])])
    return {site: np.concatenate(rows) for site, rows in found.items()}


def _fitted(x: Floats, y: Floats, kind: Kind, ridge: float) -> tuple[Floats, Floats]:
    means = x.mean(axis=0), y.mean(axis=0)
    x, y = x - means[0], y - means[1]
    found: Any
    if kind == "procrustes":
        left, _, right = np.linalg.svd(y.T @ x, full_matrices=False)
        found = left @ right
    else:
        gram = x.T @ x
        gram += ridge * float(gram.trace()) / len(gram) * np.eye(len(gram))
        found = np.linalg.solve(gram, x.T @ y).T
    return found, means[1] - found @ means[0]


def _held(x: Floats, y: Floats, matrix: Floats, bias: Floats, mean: Floats) -> Held:
    if not len(x):
        raise InvalidArgument("the texts that are held out have no matched tokens; give more of them")
    missed = y - (x @ matrix.T + bias)
    return Held(1 - float(np.linalg.norm(missed) ** 2 / np.linalg.norm(y - mean) ** 2), len(x))


def _usual(rows: Floats) -> NDArray[np.bool_]:
    size: Floats = np.linalg.norm(rows, axis=1)
    return size <= MASSIVE * float(np.median(size))


def _place(place: Place) -> tuple[Client, str]:
    return place if isinstance(place, tuple) else (place, "")


def described(place: Place) -> ModelInfo:
    """The model that a place stands for."""
    client, model = _place(place)
    return client.describe(model)
