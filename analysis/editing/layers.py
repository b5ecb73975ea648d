"""Which layer to edit: tried on facts of its own, as tracing does not tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...clients import Client
from ...clients.progress import progress_bar
from ...protos.errors import InvalidArgument
from ...protos.model import ModelInfo
from ..attribution.causal_tracing import Tracing, trace
from .answers import Answers
from .edit_facts import edit_facts
from .fact import Fact
from .fact_scores import FactScores
from .measure_facts import measure_facts
from .wording import answer_ids, wordings

__all__ = ["ChosenLayer", "candidates", "choose_layer", "locate_fact"]


@dataclass(frozen=True, slots=True, eq=False)
class ChosenLayer:
    """What each layer scored, and the best."""

    layer: int
    scores: Mapping[int, float]
    """Layer → mean over facts of the harmonic mean of efficacy, paraphrase and neighbours kept."""
    details: Mapping[int, tuple[FactScores, ...]]
    """Layer → one a fact."""

    def __str__(self) -> str:
        return "  ".join(
            f"{layer}: {score:.3f}{' *' if layer == self.layer else ''}" for layer, score in self.scores.items()
        )


def choose_layer(
    client: Client,
    facts: Sequence[Fact],
    layers: Sequence[int] | None = None,
    *,
    base: Answers | None = None,
    on_layer: Callable[[int, float], None] | None = None,
    progress: bool = True,
    model: str = "",
    **options: Any,
) -> ChosenLayer:
    """Edit each fact alone at each layer and take the layer with the best score; of equal ones the first.

    `facts`: others than those to be judged. `layers`: default `candidates`, at 10 to 40 % of the depth: where tracing finds
    a fact does not say where to edit it (Hase et al. 2023). `on_layer` hears each layer's score. `options`: of `edit_facts`.
    """
    if not facts:
        raise InvalidArgument("choose_layer needs facts to try: a few, and not those that are judged afterwards")
    tried = candidates(client.describe(model)) if layers is None else tuple(layers)
    before = base or Answers(client, model=model)
    details: dict[int, tuple[FactScores, ...]] = {}
    scores: dict[int, float] = {}
    done = 0
    with progress_bar("layers", "plans", show=progress) as bar:
        for layer in tried:
            found: list[FactScores] = []
            for fact in facts:
                edited = edit_facts(client, fact, layers=layer, model=model, **options)
                found.append(
                    measure_facts(
                        client, fact, hooks=edited.hooks, base=before, unrelated=(), n_generated=0, model=model
                    )
                )
                done += 1
                bar(done, len(tried) * len(facts))
            details[layer], scores[layer] = tuple(found), float(np.mean([one.score for one in found]))
            if on_layer is not None:
                on_layer(layer, scores[layer])
    return ChosenLayer(max(scores, key=lambda layer: (scores[layer], -layer)), scores, details)


def candidates(info: ModelInfo, most: int = 5) -> tuple[int, ...]:
    """Up to `most` layers at 10 to 40 % of the depth, evenly apart."""
    low, high = 0.1 * info.n_layers, 0.4 * info.n_layers
    return tuple(sorted({min(round(at), info.n_layers - 1) for at in np.linspace(low, high, most)}))


def locate_fact(client: Client, fact: Fact, *, seeds: int = 5, window: int = 6, model: str = "") -> Tracing:
    """Causal tracing of the fact as the model has it: noise on the subject, MLP outputs put back layer by layer.

    See `attribution.causal_tracing.trace` for what comes back. Raises InvalidArgument for a fact without a true target.
    """
    if not fact.target_true:
        raise InvalidArgument(f"{fact.asked!r} has no true target: what the model does not know cannot be located")
    prefix = "In short: " if fact.prompt.startswith("{}") else ""
    [told] = wordings(client, fact, (prefix,), "", model=model)
    answer = answer_ids(client, fact.asked, fact.target_true, model=model)[0]
    before = prefix + fact.prompt[: fact.prompt.index("{}")]
    first = len(client.tokenize(before.rstrip(), model=model).token_ids)
    return trace(
        client,
        list(told.ids),
        list(range(first, told.position + 1)),
        answer=answer,
        sites=("mlp_out",),
        seeds=seeds,
        window=window,
        model=model,
    )
