"""The active latents of a corpus, window by window: what statistics, clusters and dashboards are counted from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....clients import Client, capture
from ....clients.progress import progress_bar
from ....protos.errors import InvalidArgument
from ....protos.latents import MAX_LATENTS_READ
from ....protos.saes import SaeInfo
from ..data.corpus import Texts, of

__all__ = ["TextWindow", "stream_latents", "windows_of"]

CONTEXT = 128
"""Tokens of a window."""
FIRST_TOP_K = 64
"""Latents of a row that are asked for at first, of an SAE that does not say how many fire."""
INPUTS_A_REQUEST = 16


@dataclass(frozen=True, slots=True, eq=False)
class TextWindow:
    """A stretch of one text, and every latent that fires in it. The first `skipped` tokens have no entries."""

    text: int
    """Index of the text in the corpus."""
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    """[pos], as text."""
    skipped: int
    position: NDArray[np.int64]
    """[entry]: where in the window."""
    latent: NDArray[np.int64]
    """[entry]."""
    value: NDArray[np.float32]
    """[entry]: the activation, above 0."""

    @property
    def n_rows(self) -> int:
        """Tokens that were read."""
        return len(self.token_ids) - self.skipped

    def dense(self, latents: Sequence[int] | NDArray[np.integer]) -> NDArray[np.float32]:
        """[row, latent] of some latents: the rows that were read, in order."""
        column = {int(latent): index for index, latent in enumerate(latents)}
        found = np.zeros((self.n_rows, len(column)), dtype=np.float32)
        chosen = np.isin(self.latent, np.fromiter(column, dtype=np.int64, count=len(column)))
        columns = [column[latent] for latent in self.latent[chosen].tolist()]
        found[self.position[chosen] - self.skipped, columns] = self.value[chosen]
        return found


def stream_latents(
    client: Client,
    sae: SaeInfo,
    texts: Texts,
    *,
    context: int = CONTEXT,
    skip: int = 1,
    max_tokens: int | None = None,
    label: str = "reading latents",
    progress: bool = True,
) -> Iterator[TextWindow]:
    """Every window of a corpus with all of its active latents, in order.

    `texts`: a corpus, a path to one (.jsonl, .txt, .parquet, a folder) or the texts themselves, read as they come.
    Each is cut into windows of `context` tokens; what is left at its end is a window too. The first `skip`
    tokens of each are left out: attention parks on them, whatever they are, and their rows are outliers. Only active
    latents cross the wire; where more fire than were asked for, the request is made again for all of them, so nothing
    is left out. `max_tokens`: stop once so many tokens were read. Raises InvalidArgument for a corpus without a
    window longer than `skip`.
    """
    if skip < 0 or context <= skip:
        raise InvalidArgument(f"context must be above skip and skip 0 or more, got context {context} and skip {skip}")
    top_k = min(sae.k or FIRST_TOP_K, sae.d_sae)
    read = 0
    with progress_bar(label, "tokens", show=progress) as bar:
        found = windows_of(client, texts, context, skip, model=sae.model)
        while batch := list(islice(found, INPUTS_A_REQUEST)):
            windows, top_k = _read(client, sae, batch, skip, top_k)
            for window in windows:
                yield window
                read += window.n_rows
                bar(read, max_tokens or 0)
                if max_tokens is not None and read >= max_tokens:
                    return
    if not read:
        raise InvalidArgument(f"the corpus holds no text of more than {skip} tokens; give texts to read")


def windows_of(
    client: Client, texts: Texts, context: int, skip: int, *, model: str = ""
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(index of the text, token ids) of every window longer than `skip`."""
    for index, document in enumerate(of(texts)):
        ids = client.tokenize(document.text, model=model).token_ids
        for start in range(0, len(ids), context):
            if len(ids) - start > skip:
                yield index, ids[start : start + context]


def _read(
    client: Client, sae: SaeInfo, batch: Sequence[tuple[int, tuple[int, ...]]], skip: int, top_k: int
) -> tuple[list[TextWindow], int]:
    """The batch's windows, and the top_k that was enough for them."""
    prompts = {str(index): list(ids) for index, (_, ids) in enumerate(batch)}
    read = capture(sae.site, latents=sae.name, top_k=top_k, spans=[(skip, None)])
    run = client.run(prompts, capture=[read], model=sae.model)
    rows = [run.inputs[name].captures.latents(sae.site) for name in prompts]
    most = max(int(np.max(item.counts, initial=0)) for item in rows)
    if most > top_k:
        return _read(client, sae, batch, skip, _enough(most, sae.d_sae))
    windows = [
        _window(index, ids, run.inputs[name].prompt_tokens, skip, item)
        for (index, ids), name, item in zip(batch, prompts, rows, strict=True)
    ]
    return windows, top_k


def _enough(most: int, d_sae: int) -> int:
    """A top_k that holds `most`, with room for the next batch."""
    allowed = min(d_sae, MAX_LATENTS_READ)
    if most > allowed:
        raise InvalidArgument(f"{most:,} latents fire at one token; at most {allowed:,} can be read sparsely")
    return min(1 << (most - 1).bit_length(), allowed)


def _window(text: int, ids: tuple[int, ...], tokens: tuple[str, ...], skip: int, rows: Any) -> TextWindow:
    # By value, not by id: a row of fewer active latents is padded.
    fired = (rows.ids >= 0) & (rows.values > 0)
    row, _ = np.nonzero(fired)
    position = np.asarray(rows.positions, dtype=np.int64)[row]
    return TextWindow(
        text, ids, tokens, skip, position, rows.ids[fired].astype(np.int64), rows.values[fired].astype(np.float32)
    )
