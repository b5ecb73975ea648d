"""Values to put in a part's place: means over a reference set of prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Input
from ...clients.requests.prompts import Prompts, to_inputs
from ...protos.errors import InvalidArgument
from ...protos.sites import ATTENTION_SITES, Site

__all__ = ["Reference", "measure", "tokenized"]

INPUTS_A_REQUEST = 16
Values = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """What sites hold on average over prompts."""

    means: Mapping[str, Values]
    """Site → [pos, …the site's other axes] where `positionwise`, else […the site's other axes]."""
    spreads: Mapping[str, Values]
    """Site → the standard deviation over every row of every prompt, […the site's other axes]."""
    positionwise: bool
    """One mean a position, over prompts of one length; otherwise one mean over all rows."""
    n_prompts: int
    n_rows: int
    """Tokens of all prompts together."""

    def mean(self, site: str) -> Values:
        """The mean of one site. Raises InvalidArgument where it was not measured."""
        return self._find(self.means, site)

    def spread(self, site: str) -> Values:
        """The deviation of one site. Raises InvalidArgument where it was not measured."""
        return self._find(self.spreads, site)

    def _find(self, values: Mapping[str, Values], site: str) -> Values:
        if site not in values:
            raise InvalidArgument(
                f"the reference holds no {site}; measure it too: measure(client, prompts, [{site!r}, …]) (it holds "
                f"{', '.join(list(values)[:6])}{', …' if len(values) > 6 else ''})"
            )
        return values[site]

    def __repr__(self) -> str:
        how = "position by position" if self.positionwise else "over all rows"
        return f"Reference({len(self.means)} sites, {how} of {self.n_prompts} prompts, {self.n_rows} tokens)"


def measure(
    client: Client, prompts: Prompts, sites: str | Sequence[str], *, positionwise: bool = False, model: str = ""
) -> Reference:
    """Means and deviations of sites ("z.*", "mlp_act.3") over prompts, in float64, kept as float32.

    `positionwise`: one mean a position, for prompts of one length; otherwise every row of every prompt counts the same.
    Raises InvalidArgument for prompts of several lengths with `positionwise`, and for attn_scores and
    attn_probs, whose rows have no common width.
    """
    named = [sites] if isinstance(sites, str) else list(sites)
    inputs = list(tokenized(client, prompts, model=model).values())
    lengths = sorted({len(item.token_ids or ()) for item in inputs})
    if positionwise and len(lengths) > 1:
        raise InvalidArgument(
            f"a mean at each position needs prompts of one length, got {lengths} tokens; leave out positionwise, or "
            "take prompts of one length (FittedTask.largest_group())"
        )
    sums: dict[str, _Sums] = {}
    for start in range(0, len(inputs), INPUTS_A_REQUEST):
        run = client.run(inputs[start : start + INPUTS_A_REQUEST], capture=named, model=model)
        for item in run.inputs.values():
            for site in item.captures.sites:
                if Site.parse(site).name in ATTENTION_SITES:
                    raise InvalidArgument(f"{site} has rows as wide as its prompt is long, so it has no mean; take z")
                sums.setdefault(site, _Sums()).add(item[site])
    return Reference(
        {site: found.mean(positionwise) for site, found in sums.items()},
        {site: found.spread() for site, found in sums.items()},
        positionwise,
        len(inputs),
        sum(len(item.token_ids or ()) for item in inputs),
    )


class _Sums:
    """First and second moments of a site's rows, prompt by prompt."""

    def __init__(self) -> None:
        self.n_prompts = self.n_rows = 0
        self.rows: Any = 0.0
        self.total: Any = 0.0
        self.squares: Any = 0.0

    def add(self, rows: Any) -> None:
        rows = np.asarray(rows, dtype=np.float64)
        self.n_prompts += 1
        self.n_rows += len(rows)
        same_length = self.n_prompts == 1 or (self.rows is not None and self.rows.shape == rows.shape)
        self.rows = self.rows + rows if same_length else None
        self.total = self.total + rows.sum(axis=0)
        self.squares = self.squares + (rows**2).sum(axis=0)

    def mean(self, positionwise: bool) -> Values:
        return (self.rows / self.n_prompts if positionwise else self.total / self.n_rows).astype(np.float32)

    def spread(self) -> Values:
        mean = self.total / self.n_rows
        return np.sqrt(np.maximum(self.squares / self.n_rows - mean**2, 0.0)).astype(np.float32)


def tokenized(client: Client, prompts: Prompts, *, model: str = "") -> dict[str, Input]:
    """Prompts as token ids by name, so that lengths are known before anything runs."""
    found: dict[str, Input] = {}
    for item in to_inputs(prompts):
        ids = item.token_ids or client.tokenize(item, model=model).token_ids
        found[item.name] = Input(token_ids=ids, name=item.name)
    return found
