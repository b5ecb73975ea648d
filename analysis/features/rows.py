"""What units do on texts of several domains: activations token by token, with the tokens around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Input, capture
from ...clients.progress import progress_bar
from ...protos.errors import InvalidArgument

__all__ = ["DomainRows", "collect_rows"]

WINDOW = 128
INPUTS_A_REQUEST = 8
SKIPPED = 4
"""First tokens of a window: massive activations sit there, and little is known of what came before."""


@dataclass(frozen=True, slots=True, eq=False)
class DomainRows:
    """Rows of all domains, one after another, block by block."""

    names: tuple[str, ...]
    domain: NDArray[np.int64]
    """[row]: index of its domain."""
    block: NDArray[np.int64]
    """[row]: the window that it is of; what is permuted together."""
    token: NDArray[np.int64]
    """[row]: the token's id."""
    text: tuple[str, ...]
    """[row]: the token as text."""
    values: NDArray[np.float32]
    """[row, unit]."""
    site: str = ""

    def __post_init__(self) -> None:
        n = len(self.domain)
        if {len(self.block), len(self.token), len(self.text), len(self.values)} != {n} or n == 0:
            raise InvalidArgument("domain, block, token, text and values have one entry a row, one row at least")
        if len(self.names) < 2 or set(np.unique(self.domain).tolist()) != set(range(len(self.names))):
            raise InvalidArgument(f"rows are needed of each of two domains or more; names are {list(self.names)}")


def collect_rows(
    client: Client,
    domains: Mapping[str, Sequence[str]],
    site: str,
    *,
    max_tokens: int = 20_000,
    sae: str = "",
    window: int = WINDOW,
    progress: bool = True,
    model: str = "",
) -> DomainRows:
    """The site's values (with `sae`: its latents) over texts cut into windows, as many tokens of each domain.

    `max_tokens`: of all domains together. The first four tokens of each window are left out. Raises InvalidArgument for a
    domain without enough text for a window.
    """
    quota = max_tokens // len(domains)
    windows: list[tuple[int, list[int], list[str]]] = []
    for index, (name, texts) in enumerate(domains.items()):
        cut = _windows(client, texts, window, quota, model)
        if not cut:
            raise InvalidArgument(
                f"domain {name!r} has no text of {window} tokens; give longer texts, or a smaller window"
            )
        windows += [(index, ids, shown) for ids, shown in cut]
    read = capture(site) if not sae else capture(site, latents=sae)
    domain: list[int] = []
    block: list[int] = []
    token: list[int] = []
    text: list[str] = []
    values: list[NDArray[np.float32]] = []
    with progress_bar("reading", "prompts", show=progress) as bar:
        for start in range(0, len(windows), INPUTS_A_REQUEST):
            some = windows[start : start + INPUTS_A_REQUEST]
            inputs = [Input(token_ids=tuple(ids), name=str(i)) for i, (_, ids, _) in enumerate(some)]
            run = client.run(inputs, capture=[read], model=model)
            for i, (where, ids, shown) in enumerate(some):
                rows = np.asarray(run.inputs[str(i)][site], dtype=np.float32)[SKIPPED:]
                values.append(rows.reshape(len(rows), -1))
                domain += [where] * len(rows)
                block += [start + i] * len(rows)
                token += ids[SKIPPED:]
                text += shown[SKIPPED:]
            bar(start + len(some), len(windows))
    return DomainRows(
        tuple(domains),
        np.array(domain),
        np.array(block),
        np.array(token),
        tuple(text),
        np.concatenate(values),
        site if not sae else f"{site} ({sae})",
    )


def _windows(
    client: Client, texts: Sequence[str], window: int, quota: int, model: str
) -> list[tuple[list[int], list[str]]]:
    found: list[tuple[list[int], list[str]]] = []
    for text in texts:
        tokenized = client.tokenize(text, model=model)
        for start in range(0, len(tokenized.token_ids) - window + 1, window):
            if len(found) * (window - SKIPPED) >= quota:
                return found
            stop = start + window
            found.append((list(tokenized.token_ids[start:stop]), list(tokenized.tokens[start:stop])))
    return found
