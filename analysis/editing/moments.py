"""Second moments of a site over a corpus: what inputs of a matrix are usual, so that a change can keep off them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy as safetensors_numpy
from numpy.typing import NDArray

from ...clients import Client, capture
from ...clients.progress import progress_bar
from ...clients.results.metadata import metadata_of
from ...protos.errors import FailedPrecondition, InvalidArgument, NotFound
from ...protos.model import ModelInfo
from ..sae.data.contexts import Contexts
from ..sae.data.corpus import Corpus, Texts, of
from ..sae.data.massive import DEFAULT_RULES, Rule, apply_rules, rules_data
from ..sae.data.rows import INPUTS_A_REQUEST, Rows

__all__ = ["Moments", "SiteMoments", "second_moment"]

FORMAT = "probewire moments 1"
CALIBRATION_TOKENS = 2048
"""Rows that the median norm is taken over, which `NormOverMedian` goes by."""

Floats = NDArray[np.float64]
_numpy: Any = safetensors_numpy  # not annotated


@dataclass(frozen=True, slots=True, eq=False)
class SiteMoments:
    """Of one site's rows, those of heads behind each other."""

    n: int
    """Rows that were counted."""
    left_out: int
    """Rows that a rule left out."""
    mean: Floats
    """[width]."""
    second: Floats
    """[width, width]: E[x xᵀ], not centred."""

    @property
    def covariance(self) -> Floats:
        """[width, width]: centred."""
        return self.second - np.outer(self.mean, self.mean)

    @property
    def enough(self) -> bool:
        """Whether there are three rows or more a dimension: with fewer the small eigenvalues are those of the sample."""
        return self.n >= 3 * len(self.mean)


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Moments of sites of one model over one corpus: `moments["mlp_act.4"].second`."""

    sites: Mapping[str, SiteMoments]
    model: str
    model_hash: str
    corpus_hash: str
    """Of all documents that were read, in their order."""
    rules: tuple[Mapping[str, Any], ...]
    """What was left out, as data."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Of the reading: tokens asked for, context, dtype of the model."""

    def __getitem__(self, site: str) -> SiteMoments:
        """Of one site. Raises NotFound."""
        if site not in self.sites:
            raise NotFound(
                f"no moments of {site}; there are those of {', '.join(self.sites)}: second_moment(…, [{site!r}])"
            )
        return self.sites[site]

    def of_model(self, info: ModelInfo) -> Moments:
        """These, for that model. Raises FailedPrecondition for moments of another one."""
        if self.model_hash != info.model_hash:
            raise FailedPrecondition(
                f"the moments are of {self.model} ({self.model_hash}), not of {info.id} ({info.model_hash}); take them anew"
            )
        return self

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file, float64, with hashes of model and corpus and the rules."""
        path = Path(path)
        told = {
            "model": self.model,
            "model_hash": self.model_hash,
            "corpus_hash": self.corpus_hash,
            "rules": [dict(rule) for rule in self.rules],
            "options": dict(self.options),
            "counts": {name: [one.n, one.left_out] for name, one in self.sites.items()},
        }
        arrays = {f"{name}/mean": one.mean for name, one in self.sites.items()}
        arrays |= {f"{name}/second": one.second for name, one in self.sites.items()}
        part = path.with_suffix(path.suffix + ".part")
        _numpy.save_file(arrays, part, metadata={"format": FORMAT, "moments": json.dumps(told)})
        part.replace(path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Moments:
        """Read what `save` wrote. Raises NotFound without a file, InvalidArgument for any other file."""
        path = Path(path)
        told = json.loads(metadata_of(path, FORMAT, "Moments.save")["moments"])
        arrays = _numpy.load_file(path)
        sites = {
            name: SiteMoments(n, left_out, arrays[f"{name}/mean"], arrays[f"{name}/second"])
            for name, (n, left_out) in told["counts"].items()
        }
        return cls(sites, told["model"], told["model_hash"], told["corpus_hash"], tuple(told["rules"]), told["options"])

    def __str__(self) -> str:
        rows = [
            f"  {name}: {one.n:,} rows, {one.left_out:,} left out, trace {np.trace(one.second):.4g}"
            + ("" if one.enough else f"; fewer than 3 · {len(one.mean)}, so its small eigenvalues are the sample's")
            for name, one in self.sites.items()
        ]
        return "\n".join([f"moments of {self.model}", *rows])


def second_moment(
    client: Client,
    texts: Texts,
    sites: str | Sequence[str],
    *,
    max_tokens: int = 20_000,
    skip_massive: bool = True,
    rules: Sequence[Rule] = DEFAULT_RULES,
    context: int = 128,
    progress: bool = True,
    model: str = "",
) -> Moments:
    """Mean and E[x xᵀ] of sites over the first `max_tokens` tokens of a corpus, summed in float64.

    With `skip_massive` the rows that `rules` name are left out: a sequence's first token and rows of a norm over ten times
    the median, which otherwise are all that the moment sees (Sun et al. 2024). Take at least three tokens a dimension.
    Raises InvalidArgument for sites without rows of one width, and for a corpus of which nothing is left.
    """
    info = client.describe(model)
    named = tuple(str(one) for name in ([sites] if isinstance(sites, str) else sites) for one in info.expand(name))
    if not named:
        raise InvalidArgument("second_moment needs at least one site, for example 'mlp_act.4'")
    if max_tokens < 2:
        raise InvalidArgument(f"max_tokens must be 2 or more, got {max_tokens}")
    used = tuple(rules) if skip_massive else ()
    sums, digest = {name: _Sum(used, min(CALIBRATION_TOKENS, max_tokens)) for name in named}, ""
    with progress_bar("moments", "tokens", show=progress) as bar:
        for seen, so_far, found in _rows(client, of(texts), named, context, max_tokens, model):
            digest = so_far
            for name, rows in found.items():
                sums[name].add(rows)
            bar(seen, max_tokens)
    return Moments(
        {name: one.done(name) for name, one in sums.items()},
        info.id,
        info.model_hash,
        digest,
        tuple(rules_data(used)),
        {"max_tokens": max_tokens, "context": context, "dtype": info.dtype, "backend": info.backend},
    )


def _rows(
    client: Client, corpus: Corpus, sites: tuple[str, ...], context: int, most: int, model: str
) -> Iterator[tuple[int, str, dict[str, Rows]]]:
    """(tokens so far, hash of the documents so far, rows by site) a request; the last one is cut at `most` tokens."""
    contexts = Contexts(client, corpus, context, False, model).read()
    seen = 0
    while seen < most and (group := list(islice(contexts, INPUTS_A_REQUEST))):
        run = client.run([one.token_ids.tolist() for one in group], capture=[capture(s) for s in sites], model=model)
        n = sum(len(one.token_ids) for one in group)
        keep = slice(0, min(n, most - seen))
        positions = np.concatenate([np.arange(len(one.token_ids)) for one in group])[keep]
        ids = np.concatenate([one.token_ids for one in group])[keep]
        found: dict[str, Rows] = {}
        for site in sites:
            values = np.concatenate([_flat(run.inputs[str(i)][site]) for i in range(len(group))])[keep]
            found[site] = Rows.of(values, positions=positions, token_ids=ids)
        seen = min(seen + n, most)
        yield seen, group[-1].read.documents_hash, found


class _Sum:
    """Sums of one site's rows; the first are held until their median norm is known."""

    def __init__(self, rules: Sequence[Rule], calibration: int) -> None:
        self._rules, self._calibration = rules, calibration
        self._held: list[Rows] = []
        self._median: float | None = None
        self._n, self._left_out = 0, 0
        self._mean: Any = 0.0
        self._second: Any = 0.0

    def add(self, rows: Rows) -> None:
        if self._median is not None:
            self._take(rows)
            return
        self._held.append(rows)
        if sum(len(one) for one in self._held) >= self._calibration:
            self._settle()

    def done(self, site: str) -> SiteMoments:
        if self._median is None:
            self._settle()
        if not self._n:
            raise InvalidArgument(f"no row of {site} is left; give more text, or other rules")
        return SiteMoments(self._n, self._left_out, self._mean / self._n, self._second / self._n)

    def _settle(self) -> None:
        held, self._held = self._held, []
        self._median = float(np.median(np.concatenate([one.norms for one in held]))) if held else 0.0
        for one in held:
            self._take(one)

    def _take(self, rows: Rows) -> None:
        out = apply_rules(self._rules, rows, self._median or 0.0) >= 0
        kept: Floats = rows.values[~out].astype(np.float64)
        self._n, self._left_out = self._n + len(kept), self._left_out + int(out.sum())
        self._mean = self._mean + kept.sum(axis=0)
        self._second = self._second + kept.T @ kept


def _flat(array: NDArray[Any]) -> NDArray[Any]:
    return array.reshape(len(array), -1)
