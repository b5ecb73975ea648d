"""Units that take part in several domains: told from those that fire on everything, and from those that fire for a word.

Two ideas, or one word form in two places? A neuron that fires for "of" fires in every domain and means nothing by it, so every
count is made again without words that domains share, and with what the word alone explains taken off.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...clients import Client
from ...protos.errors import InvalidArgument
from .contexts import Contexts
from .rows import DomainRows, collect_rows

__all__ = ["Entanglement", "Profile", "entangled_units", "entanglement", "profile", "similar_across"]

Floats = NDArray[np.float64]
QUANTILE = 0.95
"""A unit fires where |a| is above this of its own values, domains weighted equally (latents: above 0)."""
EFFECTIVE = 2.5 / 4
"""Of all domains: how many a unit must take part in, on the scale exp(H)."""
GENERAL = 3.5 / 4
STILL = 0.5
"""Of its firing, or of its variance, that a unit must keep when words are taken into account."""


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """Where units fire."""

    rates: Floats
    """[unit, domain]: share of rows."""
    magnitude: Floats
    """[unit, domain]: mean |a|."""
    effective: Floats
    """[unit]: exp of the entropy of the rates; 1 … number of domains."""
    information: Floats
    """[unit]: between firing and the domain, in nats, Miller–Madow corrected."""

    @property
    def selectivity(self) -> Floats:
        """[unit]: 1 − H / log(domains)."""
        return 1.0 - np.log(self.effective) / np.log(self.rates.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class Entanglement:
    """What was found, and how much of it stands when words are taken into account."""

    names: tuple[str, ...]
    site: str
    n_rows: tuple[int, ...]
    """Of each domain."""
    profile: Profile
    entangled: tuple[int, ...]
    """Units of several domains that are about something else in each of at least two."""
    general: tuple[int, ...]
    """Units that fire on everything and are about one thing in one domain at most (one in twenty tests is chance)."""
    selective: tuple[int, ...]
    """Units whose information on the domain is above the 95th percentile under permuted labels."""
    expected_selective: float
    """So many of them are by chance, of units that have nothing to do with domains: 5 %."""
    broad: tuple[int, ...]
    """Units that fire in several domains, whatever for."""
    broad_without_words: tuple[int, ...]
    """Of `broad`, those that do so too on tokens that occur in one domain only, and at half their rate at least."""
    broad_beyond_words: tuple[int, ...]
    """Of `broad`, those that do so too with each token's own mean taken off, which leaves half their variance at least."""
    entangled_without_words: tuple[int, ...]
    """Of `entangled`, those that are in both of the above."""
    entangled_permuted: tuple[int, ...]
    """How many units are called entangled when blocks' domains are permuted, a draw each."""
    word_share: Floats
    """[unit]: of the variance, what the token alone explains (against permuted tokens)."""
    contexts: Mapping[int, Mapping[str, tuple[str, ...]]]
    """Entangled unit → domain → where it is strongest."""
    notes: tuple[str, ...] = ()
    losses: Mapping[int, Mapping[str, float]] = field(default_factory=dict[int, Mapping[str, float]])
    """Unit → domain → deviations by which its ablation raises the loss beyond matched neurons' (`causal_check`)."""

    @property
    def told(self) -> tuple[str, ...]:
        """The sentences that a report prints, good or bad."""
        n, kept = len(self.entangled), len(self.entangled_without_words)
        lost = f"{len(self.broad) - len(set(self.broad_without_words) & set(self.broad_beyond_words))} of {len(self.broad)}"
        said = [
            f"{len(self.broad)} of {len(self.word_share)} units fire in several domains; {lost} no longer do when words are taken into account",
            f"{n} are entangled, {kept} of them without words; under permuted domains {np.mean(self.entangled_permuted or [0]):.1f} are on average",
        ]
        if n and n <= max(self.entangled_permuted, default=0):
            said.append("no more are entangled than under permuted domains: nothing was found")
        shared = [unit for unit, z in self.losses.items() if sum(value >= 2 for value in z.values()) >= 2]
        if self.losses:
            said.append(
                f"ablating them raises the loss in two domains or more for {len(shared)} of {len(self.losses)} that were tried"
            )
        return tuple(said)

    def to_json(self) -> dict[str, Any]:
        """Plain data, without the profile of units that are not named."""
        named = sorted({*self.entangled, *self.general[:50], *self.broad[:200]})
        return {
            "site": self.site,
            "domains": list(self.names),
            "rows": list(self.n_rows),
            "units": len(self.word_share),
            "entangled": list(self.entangled),
            "entangled_without_words": list(self.entangled_without_words),
            "entangled_permuted": list(self.entangled_permuted),
            "general": list(self.general),
            "selective": list(self.selective),
            "broad": list(self.broad),
            "broad_without_words": list(self.broad_without_words),
            "broad_beyond_words": list(self.broad_beyond_words),
            "rates": {str(unit): self.profile.rates[unit].tolist() for unit in named},
            "effective": {str(unit): float(self.profile.effective[unit]) for unit in named},
            "word_share": {str(unit): float(self.word_share[unit]) for unit in named},
            "contexts": {str(unit): {d: list(c) for d, c in where.items()} for unit, where in self.contexts.items()},
            "losses": {str(unit): dict(z) for unit, z in self.losses.items()},
            "told": list(self.told),
            "notes": list(self.notes),
        }

    def __repr__(self) -> str:
        lines = [f"Entanglement of {len(self.word_share)} units at {self.site}, over {', '.join(self.names)}"]
        for unit in self.entangled[:10]:
            rates = ", ".join(
                f"{name} {rate:.1%}" for name, rate in zip(self.names, self.profile.rates[unit], strict=True)
            )
            mark = "" if unit in self.entangled_without_words else " (by its words)"
            lines.append(
                f"  #{unit}{mark}: {self.profile.effective[unit]:.1f} domains; {rates}; the word explains {self.word_share[unit]:.0%}"
            )
        return "\n".join([*lines, *(f"  {line}" for line in (*self.told, *self.notes))])


def entanglement(
    client: Client,
    domains: Mapping[str, Sequence[str]],
    site: str = "mlp_act.12",
    *,
    sae: str = "",
    max_tokens: int = 20_000,
    replicates: int = 200,
    permuted: int = 5,
    seed: int = 0,
    progress: bool = True,
    model: str = "",
) -> Entanglement:
    """Units of a site (or latents of an SAE on it) over texts of several domains (`domain_texts()` has four).

    `replicates`: permutations of the domains of blocks, for what chance gives; `permuted`: of the whole criterion, which is
    slower. Raises InvalidArgument for fewer than three domains, of which several is no word.
    """
    if len(domains) < 3:
        raise InvalidArgument(f"entanglement is told over three domains or more, got {len(domains)}")
    rows = collect_rows(client, domains, site, max_tokens=max_tokens, sae=sae, progress=progress, model=model)
    return entangled_units(rows, latents=bool(sae), replicates=replicates, permuted=permuted, seed=seed)


def entangled_units(
    rows: DomainRows, *, latents: bool = False, replicates: int = 200, permuted: int = 5, seed: int = 0
) -> Entanglement:
    """The same of rows that were collected. `latents`: units fire where they are above 0."""
    rng = np.random.default_rng(seed)
    domains = len(rows.names)
    fires = _fires(np.abs(rows.values), rows.domain, latents)
    found = profile(fires, rows.domain, domains, np.abs(rows.values))
    broad = np.flatnonzero(found.effective >= EFFECTIVE * domains)
    exclusive = _exclusive(rows)
    notes: list[str] = []
    without = np.zeros(0, dtype=np.int64)
    if len(np.unique(rows.domain[exclusive])) == domains:
        alone = profile(fires[exclusive], rows.domain[exclusive], domains)
        active = alone.rates.mean(axis=1) >= STILL * found.rates.mean(axis=1)  # what is left may be noise, even in all
        without = broad[(alone.effective[broad] >= EFFECTIVE * domains) & active[broad]]
    else:
        notes.append("a domain has no word of its own, so the count without shared words could not be made")
    rest, share = _beyond_words(rows, rng)
    beyond = profile(_fires(np.abs(rest), rows.domain, latents=False), rows.domain, domains)
    broad_beyond = broad[(beyond.effective[broad] >= EFFECTIVE * domains) & (share[broad] < 1 - STILL)]
    contexts = Contexts(rows, rng)
    entangled, about = _entangled(broad, contexts, rows.domain, fires)
    general = [int(u) for u in broad if found.effective[u] >= GENERAL * domains and len(about[int(u)]) < 2]
    kept = set(without.tolist()) & set(broad_beyond.tolist())
    return Entanglement(
        rows.names,
        rows.site,
        tuple(int((rows.domain == d).sum()) for d in range(domains)),
        found,
        tuple(entangled),
        tuple(general),
        tuple(np.flatnonzero(_above_chance(found.information, fires, rows, replicates, rng)).tolist()),
        0.05 * fires.shape[1],
        tuple(broad.tolist()),
        tuple(without.tolist()),
        tuple(broad_beyond.tolist()),
        tuple(unit for unit in entangled if unit in kept),
        tuple(_permuted(rows, fires, rng) for _ in range(permuted)),
        share,
        {unit: contexts.shown(unit, fires) for unit in entangled[:20]},
        tuple(notes),
    )


def profile(
    fires: NDArray[np.bool_], domain: NDArray[np.int64], domains: int, magnitude: NDArray[Any] | None = None
) -> Profile:
    """Rates, effective domains and information of every unit; domains weigh the same, however many rows they have."""
    counts = np.array([(domain == d).sum() for d in range(domains)], dtype=np.float64)
    fired = np.stack([fires[domain == d].sum(axis=0) for d in range(domains)], axis=1).astype(np.float64)
    rates = fired / counts
    total = rates.sum(axis=1, keepdims=True)
    q = np.divide(rates, total, out=np.full_like(rates, 1 / domains), where=total > 0)
    effective = np.exp(_entropy(q))
    strength = np.zeros_like(rates)
    if magnitude is not None:
        strength = np.stack([magnitude[domain == d].mean(axis=0) for d in range(domains)], axis=1).astype(np.float64)
    return Profile(rates, strength, effective, _information(rates, counts))


def similar_across(rows: DomainRows, unit: int, *, n: int = 5) -> dict[str, list[tuple[float, str]]]:
    """Domain → the rows nearest, by cosine of all units, to where one unit is strongest in any domain: (cosine, text)."""
    top = int(np.abs(rows.values[:, unit]).argmax())
    norms = np.linalg.norm(rows.values, axis=1) + 1e-30
    cosines = (rows.values @ rows.values[top]) / norms / norms[top]
    contexts = Contexts(rows, np.random.default_rng(0))
    found: dict[str, list[tuple[float, str]]] = {}
    for index, name in enumerate(rows.names):
        if index == rows.domain[top]:
            continue
        there = np.flatnonzero(rows.domain == index)
        best = there[np.argsort(-cosines[there], kind="stable")[:n]]
        found[name] = [(float(cosines[row]), contexts.around(int(row))) for row in best]
    return found


# ---- counting ----


def _fires(strength: NDArray[Any], domain: NDArray[np.int64], latents: bool) -> NDArray[np.bool_]:
    if latents:
        return strength > 0
    smallest = min(int((domain == d).sum()) for d in np.unique(domain).tolist())
    even = np.concatenate([np.flatnonzero(domain == d)[:smallest] for d in np.unique(domain).tolist()])
    return strength > np.quantile(strength[even], QUANTILE, axis=0)


def _entropy(q: Floats) -> Floats:
    return -(q * np.log(np.where(q > 0, q, 1.0))).sum(axis=-1)


def _information(rates: Floats, counts: Floats) -> Floats:
    """I(fires; domain), domains weighted equally, less the bias (domains − 1)/2N of Miller and Madow."""
    domains = rates.shape[1]
    pooled = rates.mean(axis=1)

    def binary(p: Floats) -> Floats:
        return _entropy(np.stack([p, 1 - p], axis=-1))

    raw = binary(pooled) - np.mean([binary(rates[:, d]) for d in range(domains)], axis=0)
    effective_n = domains * domains / (1 / counts).sum()
    return raw - (domains - 1) / (2 * effective_n)


def _above_chance(
    information: Floats, fires: NDArray[np.bool_], rows: DomainRows, replicates: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """[unit]: whether the information is above the 95th percentile of what permuted blocks give."""
    if replicates < 20:
        raise InvalidArgument(f"replicates must be 20 or more, for the 95th percentile is of them; got {replicates}")
    blocks, first, number = np.unique(rows.block, return_index=True, return_inverse=True)
    home = rows.domain[first]
    fired = np.zeros((len(blocks), fires.shape[1]))
    np.add.at(fired, number, fires)
    sizes = np.bincount(number).astype(np.float64)
    chance = np.zeros((replicates, fires.shape[1]))
    for draw in range(replicates):
        label = rng.permutation(home)
        onehot = (label[:, None] == np.arange(len(rows.names))).astype(np.float64)
        counts = sizes @ onehot
        chance[draw] = _information((onehot.T @ fired).T / counts, counts)
    return information > np.quantile(chance, QUANTILE, axis=0)


def _permuted(rows: DomainRows, fires: NDArray[np.bool_], rng: np.random.Generator) -> int:
    """How many units are called entangled when each block has the domain of another."""
    blocks, first, number = np.unique(rows.block, return_index=True, return_inverse=True)
    label = rng.permutation(rows.domain[first])[number]
    mixed = DomainRows(rows.names, label, rows.block, rows.token, rows.text, rows.values, rows.site)
    domains = len(rows.names)
    broad = np.flatnonzero(profile(fires, label, domains).effective >= EFFECTIVE * domains)
    return len(_entangled(broad, Contexts(mixed, rng), label, fires)[0]) if len(blocks) else 0


def _entangled(
    broad: NDArray[np.int64], contexts: Contexts, domain: NDArray[np.int64], fires: NDArray[np.bool_]
) -> tuple[list[int], dict[int, list[int]]]:
    """Units that are about one thing in each of two domains or more, and about different ones; unit → domains it is selective in."""
    entangled: list[int] = []
    about: dict[int, list[int]] = {}
    for unit in broad.tolist():
        tops = contexts.tops(unit, fires)
        about[unit] = [d for d, rows in tops.items() if contexts.clustered(d, rows)]
        pairs = [(a, b) for i, a in enumerate(about[unit]) for b in about[unit][i + 1 :]]
        if any(contexts.differ(tops[a], tops[b]) for a, b in pairs):
            entangled.append(unit)
    return entangled, about


# ---- words ----


def _exclusive(rows: DomainRows) -> NDArray[np.bool_]:
    """[row]: whether its token occurs in one domain only."""
    tokens, number = np.unique(rows.token, return_inverse=True)
    seen = np.zeros((len(tokens), len(rows.names)), dtype=bool)
    seen[number, rows.domain] = True
    return seen.sum(axis=1)[number] == 1


def _beyond_words(rows: DomainRows, rng: np.random.Generator) -> tuple[NDArray[Any], Floats]:
    """Values less each token's mean over all its rows (those that occur once stay at the mean), and the share explained.

    The share is above that of permuted tokens: with as many tokens as rows any numbers would be explained.
    """
    tokens, number, times = np.unique(rows.token, return_inverse=True, return_counts=True)
    several = times[number] > 1

    def explained(which: NDArray[np.int64]) -> tuple[NDArray[Any], Floats]:
        sums = np.zeros((len(tokens), rows.values.shape[1]), dtype=np.float64)
        np.add.at(sums, which, rows.values)
        rest = rows.values - (sums / times[:, None])[which]
        kept = several if which is number else times[which] > 1
        spread = rows.values[kept].var(axis=0) + 1e-30
        return rest, 1.0 - (rest[kept] ** 2).mean(axis=0) / spread

    rest, share = explained(number)
    _, chance = explained(rng.permutation(number))
    rest[~several] = 0.0
    return rest, np.clip((share - chance) / np.maximum(1.0 - chance, 1e-9), 0.0, 1.0).astype(np.float64)
