"""Activations of labelled texts at a site, token by token, pooled to a row a text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....clients import Client, Input, capture
from ....protos.errors import InvalidArgument
from ...ablation.probes import Labels, Rows
from ...ablation.reference import tokenized
from ..model.loaded import LoadedSae
from .probe_data import LabelledTexts
from .splice import batched

__all__ = ["ProbeRows", "TextRows", "prompts_of", "read_rows"]

TOKENS_AT_ONCE = 4096
MAX_TOKENS = 128
SKIP_FIRST = 1
"""The first token's activation is massive in many models and says nothing of the text; SAEBench drops BOS likewise."""


@dataclass(frozen=True, slots=True, eq=False)
class TextRows:
    """Texts of one split."""

    tokens: NDArray[np.float32]
    """[token, d_in]: of all texts, one after another."""
    lengths: NDArray[np.int64]
    """[text]: tokens of each."""
    labels: Labels
    """[text]: index of its class."""

    def pooled(self) -> Rows:
        """[text, d_in]: the mean over each text's tokens."""
        return self._pool(self.tokens)

    def pooled_latents(self, sae: LoadedSae) -> Rows:
        """[text, d_sae]: the mean over each text's tokens of its latents."""
        parts: list[Rows] = []
        for texts, tokens in self._parts():
            parts.append(_pool(sae.encode(self.tokens[tokens]), self.lengths[texts]))
        return np.concatenate(parts)

    def binary(self, label: int, seed: int) -> tuple[NDArray[np.intp], Labels]:
        """Indices and labels of one class against as many texts of the others, drawn with the seed, evenly by class."""
        ones = np.flatnonzero(self.labels == label)
        others = [np.flatnonzero(self.labels == other) for other in np.unique(self.labels) if other != label]
        rng = np.random.default_rng([seed, label])
        share = -(-len(ones) // len(others))
        drawn = np.concatenate([rng.permutation(found)[:share] for found in others])
        zeros = rng.permutation(drawn)[: len(ones)]
        return np.concatenate([ones, zeros]), np.repeat([1, 0], [len(ones), len(zeros)]).astype(np.int64)

    def _pool(self, values: NDArray[Any]) -> Rows:
        return _pool(values, self.lengths)

    def _parts(self) -> Iterator[tuple[slice, slice]]:
        """Texts and their tokens, a bounded number of tokens at once."""
        ends = np.cumsum(self.lengths)
        first = 0
        while first < len(ends):
            start = int(ends[first - 1]) if first else 0
            last = max(first + 1, int(np.searchsorted(ends, start + TOKENS_AT_ONCE, side="right")))
            yield slice(first, last), slice(start, int(ends[last - 1]))
            first = last


@dataclass(frozen=True, slots=True, eq=False)
class ProbeRows:
    """A set of labelled texts, read at a site."""

    name: str
    classes: tuple[str, ...]
    train: TextRows
    test: TextRows
    how: str
    """What was read, in words."""


def read_rows(
    client: Client,
    data: LabelledTexts,
    site: str,
    *,
    max_tokens: int = MAX_TOKENS,
    skip_first: int = SKIP_FIRST,
    batch: int = 32,
    model: str = "",
) -> ProbeRows:
    """Read every token of every text, up to `max_tokens`, without the first `skip_first`.

    Raises InvalidArgument for a text that has no token left.
    """
    splits = [_read(client, texts, site, max_tokens, skip_first, batch, model) for texts in (data.train, data.test)]
    how = f"{data.source}; mean over tokens {skip_first} … {max_tokens - 1} of {site}"
    return ProbeRows(data.name, data.classes, splits[0], splits[1], how)


def prompts_of(
    client: Client, texts: Mapping[str, Sequence[str]], *, max_tokens: int = MAX_TOKENS, model: str = ""
) -> list[Input]:
    """The texts of all classes as the requests' inputs, cut to `max_tokens`."""
    found = tokenized(client, [text for own in texts.values() for text in own], model=model).values()
    return [Input(token_ids=tuple(item.token_ids or ())[:max_tokens], name=item.name) for item in found]


def _read(
    client: Client,
    texts: Mapping[str, Sequence[str]],
    site: str,
    max_tokens: int,
    skip_first: int,
    batch: int,
    model: str,
) -> TextRows:
    inputs = prompts_of(client, texts, max_tokens=max_tokens, model=model)
    empty = [item.name for item in inputs if len(item.token_ids or ()) <= skip_first]
    if empty:
        raise InvalidArgument(
            f"{len(empty)} texts have no token after the first {skip_first}, such as number {empty[0]}; leave them out"
        )
    rows: list[NDArray[np.float32]] = []
    for some in batched(inputs, batch):
        run = client.run(some, capture=[capture(site, spans=[(skip_first, None)])], model=model)
        rows += [
            run.inputs[item.name][site].astype(np.float32).reshape(len(item.token_ids or ()) - skip_first, -1)
            for item in some
        ]
    labels = np.repeat(np.arange(len(texts)), [len(own) for own in texts.values()])
    return TextRows(np.concatenate(rows), np.array([len(part) for part in rows]), labels.astype(np.int64))


def _pool(values: NDArray[Any], lengths: NDArray[np.int64]) -> Rows:
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return np.add.reduceat(values.astype(np.float64), starts, axis=0) / lengths[:, None]
