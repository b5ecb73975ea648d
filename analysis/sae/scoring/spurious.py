"""Spurious correlation removal (SCR; Karvonen et al. 2024, SAEBench; after SHIFT, Marks et al. 2024).

A probe is trained where two concepts go together (every professor a man, every nurse a woman), so that it leans on both.
The N latents with the largest |(mean₊ − mean₋) · (w_probe · W_dec)| for one concept are set to 0, the error term kept, and
the biased probe is scored on the other concept, in balanced texts:

    score(N) = (acc_ablated − acc_biased) / (acc_clean − acc_biased),  0 where the denominator is below .001

with acc_clean that of a probe trained on the wanted concept alone. Of the two directions, the one in which the biased probe
is the worse counts (`scr_metric`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....clients import Client
from ....protos.errors import InvalidArgument
from ...ablation.probes import Labels, Probe, Rows, fit_probe
from ..model.loaded import LoadedSae, require_trained
from .directions import directions
from .intervals import Estimate, resampled_counts
from .probe_data import LabelledTexts, biographies
from .probe_rows import ProbeRows, read_rows
from .probing import set_seed
from .targeted import NS, Ablate, ablated_locally, effects, strongest

__all__ = ["LEAST_BIAS", "Scr", "biography_rows", "correlation_removal"]

LEAST_BIAS = 0.001
"""A biased probe that loses less accuracy than this has nothing to be freed of."""
CONCEPTS = ("profession", "gender")

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Scr:
    """Accuracies of a biased probe on balanced texts. Direction 1 removes the second concept, direction 2 the first."""

    name: str
    ns: tuple[int, ...]
    clean: Floats
    """[direction]: a probe trained on the wanted concept alone."""
    biased: Floats
    """[direction]: the biased probe on the wanted concept."""
    ablated: Floats
    """[direction, n]."""
    draws: tuple[Floats, Floats, Floats]
    """The three on resampled texts: [resample, direction], the same, [resample, direction, n]."""
    n_texts: int
    how: str

    def score(self, direction: int, n: int) -> Estimate:
        """The score of direction 1 or 2 at N latents; held-out texts resampled."""
        if direction not in (1, 2):
            raise InvalidArgument(f"direction is 1 or 2, got {direction}")
        if n not in self.ns:
            raise InvalidArgument(f"N = {n} was not run; there are: {', '.join(map(str, self.ns))}")
        side, at = direction - 1, self.ns.index(n)
        value = _score(self.clean[side], self.biased[side], self.ablated[side, at])
        clean, biased, ablated = self.draws
        draws = _score(clean[:, side], biased[:, side], ablated[:, side, at])
        return Estimate.of(float(value), np.asarray(draws), self.n_texts)

    @property
    def worse_direction(self) -> int:
        """In which the biased probe is the less accurate; 1 where they tie."""
        return 1 if self.biased[0] <= self.biased[1] else 2

    def metric(self, n: int) -> Estimate:
        """The score of the worse direction."""
        return self.score(self.worse_direction, n)

    def to_json(self) -> dict[str, Any]:
        """SAEBench's `scr` names, with intervals and the accuracies behind them."""
        found: dict[str, Any] = {"dataset_name": self.name}
        for n in self.ns:
            metric = self.metric(n)
            found |= {
                f"scr_dir1_threshold_{n}": self.score(1, n).value,
                f"scr_metric_threshold_{n}": metric.value,
                f"scr_metric_threshold_{n}_interval": metric.to_json()["interval"],
                f"scr_dir2_threshold_{n}": self.score(2, n).value,
            }
        accuracies = {"clean": self.clean.tolist(), "biased": self.biased.tolist(), "ablated": self.ablated.tolist()}
        return found | {"accuracies_by_direction": accuracies, "texts": self.how}


def biography_rows(
    client: Client,
    pair: tuple[str, str],
    site: str,
    *,
    n_train: int = 128,
    n_test: int = 64,
    seed: int = 0,
    model: str = "",
) -> ProbeRows:
    """The package's biographies of two professions by gender, read at a site: classes "professor male", …"""
    texts = biographies(pair, n_train=n_train, n_test=n_test, seed=seed)
    train = {" ".join(key): found[0] for key, found in texts.items()}
    test = {" ".join(key): found[1] for key, found in texts.items()}
    name = f"biographies: {pair[0]} or {pair[1]}"
    return read_rows(
        client, LabelledTexts(name, train, test, f"probewire's biographies, seed {seed}"), site, model=model
    )


def correlation_removal(
    sae: LoadedSae,
    data: ProbeRows,
    ns: Sequence[int] = NS,
    *,
    ablate: Ablate | None = None,
    seed: int = 0,
    allow_untrained: bool = False,
) -> Scr:
    """SCR on texts of four classes: both values of one concept, each with both of another, in this order:

    (first a, second a), (first a, second b), (first b, second a), (first b, second b). The biased probe tells the first
    class from the last. Raises FailedPrecondition for an untrained SAE, InvalidArgument for other than four classes.
    """
    if not allow_untrained:
        require_trained(sae)
    if len(data.classes) != 4:
        raise InvalidArgument(
            f"{data.name!r} has the classes {', '.join(data.classes)}; SCR crosses two concepts: four"
        )
    kept = tuple(n for n in ns if 1 <= n <= sae.d_sae)
    if not kept:
        raise InvalidArgument(f"no N of {list(ns)} is in 1 … d_sae = {sae.d_sae}")
    train, latents, test = data.train.pooled(), data.train.pooled_latents(sae), data.test.pooled()
    ablate = ablate or ablated_locally(sae, test, data.test.pooled_latents(sae))
    rows = directions(sae)
    agree = np.isin(data.train.labels, (0, 3))
    biased = fit_probe(train[agree], (data.train.labels[agree] == 0).astype(np.int64))
    probes = [fit_probe(train, _concept(data.train.labels, side)) for side in (0, 1)]
    judge = _Judge(data.test.labels, set_seed(data.name, seed))
    clean, clean_draws = _stacked([judge(probe, test, side) for side, probe in enumerate(probes)])
    before, before_draws = _stacked([judge(biased, test, side) for side in (0, 1)])
    after = np.zeros((2, len(kept)))
    after_draws = np.zeros((len(clean_draws), *after.shape))
    for wanted in (0, 1):
        removed = 1 - wanted
        found = effects(latents, _concept(data.train.labels, removed), probes[removed], rows, signed=True)
        best = strongest(np.abs(found), max(kept))
        for number, n in enumerate(kept):
            changed = ablate(best[:n].tolist()) if len(best) else test
            after[wanted, number], after_draws[:, wanted, number] = judge(biased, changed, wanted)
    draws = (clean_draws, before_draws, after_draws)
    return Scr(data.name, kept, clean, before, after, draws, len(test), data.how)


def _concept(labels: Labels, side: int) -> Labels:
    """1 where the first (side 0) or the second concept (side 1) has its first value."""
    return (labels < 2).astype(np.int64) if side == 0 else (labels % 2 == 0).astype(np.int64)


class _Judge:
    """A probe's accuracy on one concept, and the same on resampled texts."""

    def __init__(self, labels: Labels, seed: int) -> None:
        self.labels, self.counts = labels, resampled_counts(len(labels), seed=seed)

    def __call__(self, probe: Probe, rows: Rows, side: int) -> tuple[float, Floats]:
        correct = ((probe.scores(rows) > 0) == (_concept(self.labels, side) == 1)).astype(np.float64)
        return float(correct.mean()), self.counts @ correct / self.counts.sum(axis=1)


def _stacked(found: Sequence[tuple[float, Floats]]) -> tuple[Floats, Floats]:
    return np.array([value for value, _ in found]), np.stack([draws for _, draws in found], axis=1)


def _score(clean: Any, biased: Any, ablated: Any) -> Any:
    room = np.asarray(clean - biased, dtype=np.float64)
    return np.divide(ablated - biased, room, out=np.zeros_like(room), where=room >= LEAST_BIAS)


def mean_scores(found: Sequence[Scr]) -> Mapping[str, float]:
    """SAEBench's `scr_metrics`: the mean over sets of each figure that every set has."""
    listed = [
        {k: v for k, v in one.to_json().items() if k.startswith("scr_") and isinstance(v, float)} for one in found
    ]
    return {key: float(np.mean([one[key] for one in listed])) for key in listed[0] if all(key in one for one in listed)}
