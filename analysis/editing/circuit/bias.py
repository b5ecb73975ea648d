"""Pronouns and occupations: which way a model leans, what an edit does to that, and what to knowing whom a word names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ....clients import Client, Hook, LogitDifference, hook
from ....protos.edits import Edit
from ....protos.errors import InvalidArgument
from ....protos.variants.use import VariantUse
from ...circuits.ablated import ablated
from ...circuits.circuit import Circuit
from ...circuits.discovery import prune_ranking
from ...circuits.joined import JoinedSpace
from ...circuits.ranking import rank_units
from ...circuits.space import head_space, neuron_space
from ...datasets import load_set
from ...reports.at_ends import measure
from ...reports.statistics import Figure, measured
from ...tasks.fitted import FittedTask, fit
from ...tasks.task import Example, Task

__all__ = ["BiasScores", "find_bias_circuit", "pronoun_prompts", "pronoun_rows", "score_bias"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class BiasScores:
    """Log-odds of he against she behind names of work, and behind words that say which it is."""

    occupations: Floats
    """[form, word]."""
    men: Floats
    """[form, pair]: king, father, …"""
    women: Floats

    @property
    def deviation(self) -> float:
        """Standard deviation over occupations within a form, mean over forms: how far apart the model holds them."""
        return float(self.occupations.std(axis=1).mean())

    @property
    def lean(self) -> float:
        """|mean over occupations|, mean over forms."""
        return float(np.abs(self.occupations.mean(axis=1)).mean())

    @property
    def gap(self) -> float:
        """Mean of men less women: the knowledge that must stay."""
        return float((self.men - self.women).mean())

    @property
    def gap_interval(self) -> Figure:
        """The gap over pairs and forms, pairs drawn together."""
        each = (self.men - self.women).T
        return measured(each.ravel(), clusters=[str(i) for i in np.repeat(np.arange(len(each)), each.shape[1])])

    @property
    def right(self) -> float:
        """Share of defining words whose own pronoun is the likelier."""
        return float(np.concatenate([(self.men > 0).ravel(), (self.women < 0).ravel()]).mean())

    def __str__(self) -> str:
        return f"deviation {self.deviation:.2f}, lean {self.lean:.2f}, gap {self.gap:.2f}, {self.right:.0%} of defining words right"


@dataclass(frozen=True, slots=True)
class _Words:
    """A half of the set."""

    forms: list[str]
    occupations: list[str]
    men: list[str]
    women: list[str]
    he: list[str]
    she: list[str]

    @classmethod
    def of(cls, half: str) -> _Words:
        if half not in ("train", "held_out"):
            raise InvalidArgument(f"half is train or held_out, got {half!r}")
        data = load_set("pronouns").data
        pairs: list[tuple[str, str]] = [(str(man), str(woman)) for man, woman in data["definitional"][half]]
        forms, occupations = ([str(text) for text in data[kind][half]] for kind in ("forms", "occupations"))
        he, she = ([str(text) for text in data[kind]] for kind in ("he", "she"))
        return cls(forms, occupations, [man for man, _ in pairs], [woman for _, woman in pairs], he, she)


def pronoun_prompts(half: str) -> tuple[list[str], list[str]]:
    """(prompts, their words) of a half of the set `pronouns`: for each form the occupations, then the men, then the women."""
    own = _Words.of(half)
    words = [*own.occupations, *own.men, *own.women]
    return [form.format(word) for form in own.forms for word in words], words * len(own.forms)


def score_bias(
    client: Client,
    edits: Sequence[Sequence[tuple[str, Edit]]] = ((),),
    *,
    half: str = "held_out",
    at: str = "all",
    variants: Sequence[VariantUse] = (),
    model: str = "",
) -> list[BiasScores]:
    """What each list of (site, edit) does, at the last token of the prompt's word alone, under loaded `variants`.

    `at`: "all" words (whoever applies it cannot tell occupations from kings), or "occupations".
    """
    if at not in ("all", "occupations"):
        raise InvalidArgument(f"at is all or occupations, got {at!r}")
    own, (prompts, words) = _Words.of(half), pronoun_prompts(half)
    places = [_place(client, prompt, word, model) for prompt, word in zip(prompts, words, strict=True)]
    reached = [i for i, word in enumerate(words) if at == "all" or word in own.occupations]
    he, she = (tuple(client.token(word, model=model) for word in side) for side in (own.he, own.she))
    plans: list[list[Hook]] = []
    for listed in edits:
        by_place: dict[int, list[str]] = {}
        for i in reached:
            by_place.setdefault(places[i], []).append(str(i))
        plans.append(
            [hook(site, edit, positions=p, inputs=names) for site, edit in listed for p, names in by_place.items()]
        )
    values = measure(client, prompts, LogitDifference(he, she), plans, variants=variants, kl=False, model=model).values
    found: list[BiasScores] = []
    n, n_pairs = len(own.occupations), len(own.men)
    for row in values:
        by_form = row.reshape(len(own.forms), -1)
        found.append(BiasScores(by_form[:, :n], by_form[:, n : n + n_pairs], by_form[:, n + n_pairs :]))
    return found


def pronoun_rows(client: Client, sites: Sequence[str], *, half: str = "train", model: str = "") -> dict[str, Floats]:
    """Site → [prompt, width]: the row of each prompt's word at its last token, in the order of `pronoun_prompts`."""
    prompts, words = pronoun_prompts(half)
    found: dict[str, list[Floats]] = {site: [] for site in sites}
    for start in range(0, len(prompts), 32):
        run = client.run(prompts[start : start + 32], capture=list(sites), model=model, progress=False)
        for offset, item in enumerate(run.inputs.values()):
            place = _place(client, prompts[start + offset], words[start + offset], model)
            for site in sites:
                found[site].append(np.asarray(item[site][place], dtype=np.float64))
    return {site: np.stack(rows) for site, rows in found.items()}


def find_bias_circuit(
    client: Client, *, n: int = 16, target: float = 0.8, tolerance: float = 0.2, half: str = "train", model: str = ""
) -> Circuit:
    """The heads and neurons that hold occupations apart: RelP's ranking, pruned to a faithfulness.

    Pairs are two occupations in one form with as many tokens; the clean one is that after which he is the likelier, the
    corrupt one lends its values to what is left out. Raises InvalidArgument where fewer than `n` pairs fit the tokenizer.
    """
    task = _task(client, n, half, model)
    info = client.describe(model)
    space = JoinedSpace((head_space(info), neuron_space(info)))
    clean, corrupt = (list(task.prompts(form).values()) for form in ("clean", "corrupt"))
    scores = rank_units(client, clean, corrupt, task.metrics, space, rank="relp", model=model)
    bench = ablated(client, clean, corrupt, task.metrics, space, progress=False, model=model)
    found = prune_ranking(bench, scores, target=target, tolerance=tolerance, method="RelP").circuit
    return found.with_origin(task="pronouns: occupations", model=info.id, model_hash=info.model_hash)


def _task(client: Client, n: int, half: str, model: str) -> FittedTask:
    own = _Words.of(half)
    base = score_bias(client, half=half, model=model)[0].occupations.mean(axis=0)
    ordered = [own.occupations[int(i)] for i in np.argsort(-base)]
    pairs = list(zip(ordered, reversed(ordered), strict=True))[: len(ordered) // 2]
    pairs += [(one, other) for (one, _), (_, other) in pairwise(pairs)]
    he, she = tuple(own.he), tuple(own.she)
    examples = [Example(form.format(a), form.format(b), he, she) for form in own.forms for a, b in pairs]
    return fit(Task("pronouns", tuple(examples)), client, n, model=model)


def _place(client: Client, prompt: str, word: str, model: str) -> int:
    """Position of the last token of a word in a prompt."""
    end = prompt.index(word) + len(word)
    return len(client.tokenize(prompt[:end], model=model).token_ids) - 1
