"""The logit lens: what the model would say if it stopped after a layer (nostalgebraist, 2020).

Each layer's stream is put in the place of the last one's, so the model's own final norm and unembedding read it: exact
on any family, and neither weights nor vocabularies cross the wire.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Gather, Hook, InputResult, Run, TopK, capture, patch
from ...clients.requests.prompts import Prompt
from ...protos.errors import Internal, InvalidArgument
from .grid import Layers, from_start

__all__ = ["LogitLens", "logit_lens"]

MAX_INPUTS = 64
MAX_SENT, MAX_RECEIVED = 24 << 20, 256 << 20
"""Bytes of streams in one request (a server takes 64 MiB, JSON swells them), and of whole logits in one answer."""
TOLERANCE = {"float64": 1e-6, "float32": 1e-3, "float16": 3e-2, "bfloat16": 2.5e-1}
"""By the model's dtype: how far the last layer's reading may be from the model's own logits, as a share of their spread."""

Floats = NDArray[np.float64]
OWN = "model"


@dataclass(frozen=True, slots=True, eq=False)
class LogitLens:
    """What every layer says at every chosen position. The last layer's row is the model's own answer."""

    tokens: tuple[str, ...]
    """The prompt's tokens at `positions`."""
    positions: tuple[int, ...]
    """Absolute, ascending."""
    layers: tuple[int, ...]
    top_ids: NDArray[np.int64]
    """[layer, position, k], likeliest first."""
    top_tokens: NDArray[Any]
    """[layer, position, k], as text."""
    probabilities: Floats
    """[layer, position, k]"""
    targets: tuple[int, ...] = ()
    """Token ids that were asked for."""
    target_probabilities: Floats | None = None
    """[layer, position, target]"""
    target_ranks: NDArray[np.int64] | None = None
    """[layer, position, target]: how many tokens have a larger logit; 0 for the likeliest."""

    @property
    def words(self) -> NDArray[Any]:
        """[layer, position]: the likeliest token, as text."""
        return self.top_tokens[:, :, 0]

    @property
    def best(self) -> Floats:
        """[layer, position]: its probability."""
        return self.probabilities[:, :, 0]

    def first_top(self, token: int | str, *, to_end: bool = False) -> NDArray[np.int64]:
        """[position]: the first layer whose likeliest token is `token` (an id, or its text); −1 where there is none.

        `to_end`: the first layer from which on it stays so, through the last one read.
        """
        names = self.top_tokens if isinstance(token, str) else self.top_ids
        order = np.argsort(self.layers)  # they may have been asked for in any order
        on_top = (names[:, :, 0] == token)[order]
        if to_end:
            on_top = np.logical_and.accumulate(on_top[::-1])[::-1]
        found = np.asarray(self.layers, dtype=np.int64)[order][on_top.argmax(axis=0)]
        return np.where(on_top.any(axis=0), found, -1)

    def __repr__(self) -> str:
        return f"LogitLens({len(self.layers)} layers, {len(self.positions)} positions of {''.join(self.tokens)!r})"


def logit_lens(
    client: Client,
    prompt: Prompt,
    *,
    k: int = 5,
    targets: Sequence[int] = (),
    layers: Layers = None,
    positions: Sequence[int] | None = None,
    model: str = "",
) -> LogitLens:
    """The k likeliest next tokens by layer and position, and how `targets` (token ids) fare.

    Costs one forward for the streams and one a layer. Ranks need whole rows of logits: with `targets`, 4 bytes a layer,
    position and word of the vocabulary come back, so give `positions` (negative: from the end) where the prompt is long.
    Raises InvalidArgument for layers, positions or targets that the model or the prompt does not have.
    """
    info = client.describe(model)
    chosen = _checked(
        range(info.n_layers) if layers is None else from_start(layers, info.n_layers), info.n_layers, "layer"
    )
    wanted = tuple(_checked(targets, info.vocab_size, "target token")) if len(targets) else ()
    streams = client.run(prompt, capture=[f"resid_post.{layer}" for layer in chosen], model=model).only
    tokens = streams.tokens
    # Rows come back in the order of the prompt, so they are asked for in it.
    rows = sorted(
        _checked(range(len(tokens)) if positions is None else positions, len(tokens), "position", negative=True)
    )
    last = f"resid_post.{info.n_layers - 1}"
    read = _Reading(client, model, streams.token_ids, rows, last, k, wanted)
    values = {layer: streams[f"resid_post.{layer}"][rows] for layer in chosen}
    found: list[_Rows] = []
    answered = 4 * info.vocab_size * len(rows) if wanted else 0
    for some in _batches(chosen, values[chosen[0]].nbytes, answered):
        found += read({layer: values[layer] for layer in some})
    if info.n_layers - 1 in chosen:
        _require_own(read.own, found[chosen.index(info.n_layers - 1)], info.dtype)
    top_ids = np.stack([item.top_ids for item in found])
    words = client.tokenize(top_ids.ravel().tolist(), model=model).tokens
    return LogitLens(
        tuple(tokens[row] for row in rows),
        tuple(rows),
        tuple(chosen),
        top_ids,
        np.array(words, dtype=object).reshape(top_ids.shape),
        np.stack([_shares(item.top_logits, item.log_z) for item in found]),
        wanted,
        np.stack([_shares(item.targets, item.log_z) for item in found]) if wanted else None,
        np.stack([item.ranks for item in found]) if wanted else None,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """One layer's reading, float64, at the chosen positions."""

    top_ids: NDArray[np.int64]
    top_logits: Floats
    log_z: Floats
    """[position]: log of the sum of exp(logits)."""
    targets: Floats
    """[position, target]: logits."""
    ranks: NDArray[np.int64]


class _Reading:
    """Reads streams through the model's own last steps, and keeps what the model itself says beside them."""

    def __init__(
        self,
        client: Client,
        model: str,
        token_ids: tuple[int, ...],
        rows: list[int],
        last: str,
        k: int,
        targets: tuple[int, ...],
    ) -> None:
        self._client, self._model, self._rows, self._last, self._targets = client, model, rows, last, targets
        # The log-probability of the next token tells the row's normaliser, so the last row needs a next token too.
        self._tokens = [*token_ids, token_ids[0]]
        self._following = [self._tokens[row + 1] for row in rows]
        self._gathered = tuple(dict.fromkeys(self._following))
        self._reads = [
            capture("logits", reduce=TopK(k), positions=rows, id="top", dtype="float32"),
            capture("logits", reduce="next_logprob", positions=rows, id="next"),
            capture("logits", reduce=Gather(self._gathered), positions=rows, id="following"),
        ]
        self.own: _Rows | None = None

    def __call__(self, streams: dict[int, NDArray[Any]]) -> list[_Rows]:
        hooks = [
            patch(self._last, value=np.asarray(rows), positions=self._rows, inputs=str(layer))
            for layer, rows in streams.items()
        ]
        names = [OWN, *map(str, streams)]
        inputs = dict.fromkeys(names, self._tokens)
        run = self._client.run(inputs, hooks=hooks, capture=[*self._reads, *self._whole()], model=self._model)
        self.own = self._rows_of(run, OWN)
        return [self._rows_of(run, name) for name in names[1:]]

    def _whole(self) -> list[Hook]:
        return [capture("logits", positions=self._rows, id="whole", dtype="float32")] if self._targets else []

    def _rows_of(self, run: Run, name: str) -> _Rows:
        item = run.inputs[name]
        values, indices = item.hook("top").top_k("logits")
        gathered = item.hook("following")["logits"].astype(np.float64)
        places = [self._gathered.index(token) for token in self._following]
        following = gathered[np.arange(len(places)), places]
        log_z = following - item.hook("next")["logits"].astype(np.float64).reshape(-1)
        targets, ranks = self._target_rows(item)
        return _Rows(indices.astype(np.int64), values.astype(np.float64), log_z, targets, ranks)

    def _target_rows(self, item: InputResult) -> tuple[Floats, NDArray[np.int64]]:
        if not self._targets:
            return np.zeros((len(self._rows), 0)), np.zeros((len(self._rows), 0), dtype=np.int64)
        whole = item.hook("whole")["logits"]
        logits = whole[:, list(self._targets)]
        ranks = np.stack([(whole > column[:, None]).sum(axis=1) for column in logits.T], axis=1)
        return logits.astype(np.float64), ranks.astype(np.int64)


def _shares(logits: Floats, log_z: Floats) -> Floats:
    """Probabilities; rounding may not take them past 1."""
    return np.minimum(np.exp(logits - log_z[:, None]), 1.0)


def _require_own(own: _Rows | None, last: _Rows, dtype: str) -> None:
    """Raise Internal unless the last layer, read this way, says what the model says."""
    if own is None:
        return
    spread = max(float(np.ptp(own.top_logits)), float(np.abs(own.top_logits).max()), 1e-9)
    error = float(np.abs(own.top_logits - last.top_logits).max()) / spread
    if error > TOLERANCE.get(dtype, TOLERANCE["bfloat16"]):
        raise Internal(
            f"the last layer's stream, read through the model's own last steps, gives other logits than the model "
            f"(relative error {error:.2g} in {dtype}); please report it with the model's name"
        )


def _checked(values: Sequence[int], size: int, what: str, *, negative: bool = False) -> list[int]:
    """Distinct indices below `size`, in order; negative ones from the end where they are allowed."""
    low = -size if negative else 0
    wrong = [value for value in values if not low <= value < size]
    if wrong or not len(values):
        named = wrong[:5] if wrong else "none"
        raise InvalidArgument(f"logit_lens: {what} {named} given; allowed: {low} … {size - 1}, at least one")
    found = [int(value) % size for value in values]
    if len(set(found)) != len(found):
        raise InvalidArgument(f"logit_lens: a {what} is named twice: {list(values)}")
    return found


def _batches(layers: list[int], sent: int, received: int) -> list[list[int]]:
    """Layers that fit one request, beside the plain input; bytes are those of one layer."""
    size = max(1, min(MAX_INPUTS - 1, MAX_SENT // max(sent, 1), MAX_RECEIVED // max(received, 1) - 1))
    return [layers[start : start + size] for start in range(0, len(layers), size)]
