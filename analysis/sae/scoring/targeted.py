"""Targeted probe perturbation (TPP; Karvonen et al. 2024, SAEBench): do the latents of a concept belong to it alone?

For each class i: a probe on the model's activations, and for each latent its effect (mean₊ − mean₋)₊ · (w_probe · W_dec).
The N latents with the largest effects are set to 0, the error term kept, and every probe is scored again:

    score(N) = mean over i of [Δacc_i − mean over j ≠ i of Δacc_j],  Δacc = accuracy before − after

A balanced probe cannot fall below chance by losing its concept, so a perfect SAE scores about .5; `share` divides by what
each probe had above chance, so that a perfect one has about 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....clients import Client, Input, capture, edit_latents
from ....protos.errors import InvalidArgument
from ...ablation.probes import Labels, Probe, Rows, fit_probe
from ..model.loaded import LoadedSae, require_trained
from .directions import directions
from .intervals import Estimate, resampled_counts
from .probe_rows import MAX_TOKENS, SKIP_FIRST, ProbeRows
from .probing import set_seed
from .splice import batched

__all__ = [
    "NS",
    "Ablate",
    "Tpp",
    "ablated_in_model",
    "ablated_locally",
    "effects",
    "strongest",
    "targeted_perturbation",
]

NS = (2, 5, 10, 20, 50, 100, 500)
"""Numbers of latents that are set to 0."""
CHANCE = 0.5

Floats = NDArray[np.float64]
Ablate = Callable[[Sequence[int]], Rows]
"""Latents → [text, d_in]: the mean over each held-out text's tokens with these latents at 0, the error term kept."""


@dataclass(frozen=True, slots=True, eq=False)
class Tpp:
    """Accuracies before and after, of one set of texts."""

    name: str
    classes: tuple[str, ...]
    ns: tuple[int, ...]
    before: Floats
    """[class]: accuracy of its probe."""
    after: Floats
    """[n, ablated class, probe's class]."""
    draws_before: Floats
    """[resample, class]: `before` on resampled texts."""
    draws_after: Floats
    """[resample, n, ablated class, probe's class]."""
    n_found: NDArray[np.int64]
    """[class]: latents with a positive effect; fewer than N are set to 0 where there are no more."""
    n_texts: int
    how: str

    def score(self, n: int) -> Estimate:
        """The score at N latents; held-out texts resampled."""
        return self._estimate(n, _scores)

    def intended(self, n: int) -> Estimate:
        """What the ablated class's own probe loses."""
        return self._estimate(n, lambda before, after: _losses(before, after)[0])

    def unintended(self, n: int) -> Estimate:
        """What the other classes' probes lose."""
        return self._estimate(n, lambda before, after: _losses(before, after)[1])

    def share(self, n: int) -> Estimate:
        """The score, each class's in units of what its probe had above chance."""
        return self._estimate(n, _shares)

    def _estimate(self, n: int, figure: Callable[[Floats, Floats], Floats]) -> Estimate:
        if n not in self.ns:
            raise InvalidArgument(f"N = {n} was not run; there are: {', '.join(map(str, self.ns))}")
        at = self.ns.index(n)
        value = figure(self.before[None], self.after[None, at])
        return Estimate.of(float(value[0]), figure(self.draws_before, self.draws_after[:, at]), self.n_texts)

    def to_json(self) -> dict[str, Any]:
        """SAEBench's `tpp` names, with intervals and what was ablated."""
        found: dict[str, Any] = {"dataset_name": self.name}
        for n in self.ns:
            score = self.score(n)
            found |= {
                f"tpp_threshold_{n}_total_metric": score.value,
                f"tpp_threshold_{n}_total_metric_interval": score.to_json()["interval"],
                f"tpp_threshold_{n}_intended_diff_only": self.intended(n).value,
                f"tpp_threshold_{n}_unintended_diff_only": self.unintended(n).value,
                f"tpp_threshold_{n}_share_above_chance": self.share(n).value,
            }
        clean = dict(zip(self.classes, self.before.tolist(), strict=True))
        latents = dict(zip(self.classes, self.n_found.tolist(), strict=True))
        return found | {"llm_clean_accs": clean, "latents_with_effect": latents, "texts": self.how}


def targeted_perturbation(
    sae: LoadedSae,
    data: ProbeRows,
    ns: Sequence[int] = NS,
    *,
    ablate: Ablate | None = None,
    seed: int = 0,
    allow_untrained: bool = False,
) -> Tpp:
    """TPP on one set of three classes or more (with two, one class's loss is the other's).

    `ablate`: by default here, from the activations in hand; `ablated_in_model` has the server do it. Ns above d_sae are
    left out. Raises FailedPrecondition for an SAE that was never trained, InvalidArgument for too few classes or no N.
    """
    if not allow_untrained:
        require_trained(sae)
    if len(data.classes) < 3:
        raise InvalidArgument(f"{data.name!r} has {len(data.classes)} classes; TPP compares three or more")
    kept = tuple(n for n in ns if 1 <= n <= sae.d_sae)
    if not kept:
        raise InvalidArgument(f"no N of {list(ns)} is in 1 … d_sae = {sae.d_sae}")
    own = set_seed(data.name, seed)
    train, latents = data.train.pooled(), data.train.pooled_latents(sae)
    test = data.test.pooled()
    ablate = ablate or ablated_locally(sae, test, data.test.pooled_latents(sae))
    rows = directions(sae)
    probes: list[Probe] = []
    ranked: list[NDArray[np.intp]] = []
    for index in range(len(data.classes)):
        chosen, labels = data.train.binary(index, own)
        probe = fit_probe(train[chosen], labels)
        probes.append(probe)
        ranked.append(strongest(effects(latents[chosen], labels, probe, rows), max(kept)))
    judge = _Judge(probes, [data.test.binary(index, own) for index in range(len(probes))], len(test), own)
    before, draws_before = judge.accuracies(test)
    after = np.zeros((len(kept), len(probes), len(probes)))
    draws_after = np.zeros((len(draws_before), *after.shape))
    for number, n in enumerate(kept):
        for index, best in enumerate(ranked):
            changed = ablate(best[:n].tolist()) if len(best) else test
            after[number, index], draws_after[:, number, index] = judge.accuracies(changed)
    found = np.array([len(best) for best in ranked])
    return Tpp(data.name, data.classes, kept, before, after, draws_before, draws_after, found, len(test), data.how)


def effects(latents: Rows, labels: Labels, probe: Probe, rows: Floats, *, signed: bool = False) -> Floats:
    """[d_sae]: (mean₊ − mean₋)₊ · (w_probe · W_dec); with `signed`, the difference of means is not clipped."""
    gap = latents[labels == 1].mean(axis=0) - latents[labels == 0].mean(axis=0)
    return (gap if signed else np.maximum(gap, 0.0)) * (rows @ probe.direction)


def strongest(found: Floats, n: int) -> NDArray[np.intp]:
    """Up to `n` latents with the largest effects, largest first; those without a positive one are never taken."""
    order = np.argsort(-found, kind="stable")[:n]
    return order[found[order] > 0]


def ablated_locally(sae: LoadedSae, pooled: Rows, pooled_latents: Rows) -> Ablate:
    """From means in hand: with the error term kept, a latent at 0 takes its mean times its direction away."""
    rows = directions(sae)

    def ablate(ids: Sequence[int]) -> Rows:
        return pooled - pooled_latents[:, ids] @ rows[ids]

    return ablate


def ablated_in_model(
    client: Client,
    inputs: Sequence[Input],
    site: str,
    sae: str,
    *,
    max_tokens: int = MAX_TOKENS,
    skip_first: int = SKIP_FIRST,
    model: str = "",
) -> Ablate:
    """By the server, in the model: the latents of a loaded SAE are edited, and the means are read after the edit."""

    def ablate(ids: Sequence[int]) -> Rows:
        hooks = [edit_latents(site, sae, dict.fromkeys(ids, 0.0))]
        reads = [capture(site, reduce="mean", spans=[(skip_first, max_tokens)])]
        rows: list[Floats] = []
        for some in batched(inputs):
            run = client.run(some, hooks=hooks, capture=reads, model=model)
            rows += [run.inputs[item.name][site].astype(np.float64).reshape(-1) for item in some]
        return np.stack(rows)

    return ablate


class _Judge:
    """Probes on their balanced held-out texts, and the same on resamples of the texts."""

    def __init__(
        self, probes: Sequence[Probe], sets: Sequence[tuple[NDArray[np.intp], Labels]], n_texts: int, seed: int
    ) -> None:
        self.probes, self.sets = probes, sets
        self.counts = resampled_counts(n_texts, seed=seed)

    def accuracies(self, rows: Rows) -> tuple[Floats, Floats]:
        """[class], and [resample, class]."""
        value, draws = np.zeros(len(self.probes)), np.zeros((len(self.counts), len(self.probes)))
        for index, (probe, (texts, labels)) in enumerate(zip(self.probes, self.sets, strict=True)):
            correct = ((probe.scores(rows[texts]) > 0) == (labels == 1)).astype(np.float64)
            counts = self.counts[:, texts]
            value[index] = correct.mean()
            draws[:, index] = counts @ correct / np.maximum(counts.sum(axis=1), 1)
        return value, draws


def _losses(before: Floats, after: Floats) -> tuple[Floats, Floats]:
    """[resample, class] and [resample, ablated, probe] → what the own probe and the others lose, each [resample]."""
    own, others = _by_class(before, after)
    return own.mean(axis=1), others.mean(axis=1)


def _by_class(before: Floats, after: Floats) -> tuple[Floats, Floats]:
    lost = before[:, None, :] - after
    own = np.einsum("bii->bi", lost)
    return own, (lost.sum(axis=2) - own) / (lost.shape[1] - 1)


def _scores(before: Floats, after: Floats) -> Floats:
    own, others = _losses(before, after)
    return own - others


def _shares(before: Floats, after: Floats) -> Floats:
    own, others = _by_class(before, after)
    above = before - CHANCE
    defined = above > 0
    shares = np.divide(own - others, above, out=np.zeros_like(own), where=defined)
    return shares.sum(axis=1) / np.maximum(defined.sum(axis=1), 1)


def mean_scores(found: Sequence[Tpp]) -> Mapping[str, float]:
    """SAEBench's `tpp_metrics`: the mean over sets of each figure that every set has."""
    listed = [
        {k: v for k, v in one.to_json().items() if k.startswith("tpp_") and isinstance(v, float)} for one in found
    ]
    return {key: float(np.mean([one[key] for one in listed])) for key in listed[0] if all(key in one for one in listed)}
