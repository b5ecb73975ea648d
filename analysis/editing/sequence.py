"""Facts edited one after the other, each on the model as it is by then: how long that goes well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...clients import Client, Variant
from ...clients.progress import progress_bar
from ...protos.errors import InvalidArgument
from ..sae.scoring.intervals import Estimate
from ..sae.unlearning.mcq import Accuracy
from .answers import Answers
from .edit_facts import default_layers, edit_facts
from .edited import variant_hooks
from .fact import Fact
from .measure_facts import measure_facts

__all__ = ["SequencePoint", "Sequential", "edit_sequence"]

LOW = 0.7


@dataclass(frozen=True, slots=True)
class SequencePoint:
    """After so many edits."""

    n_edits: int
    efficacy: Accuracy
    """Of all facts edited so far."""
    paraphrase: Accuracy
    neighbours_kept: Accuracy
    unrelated_kl: Estimate | None
    norm: float
    """‖Δ‖_F of all edits together at the first layer edited."""


@dataclass(frozen=True, slots=True, eq=False)
class Sequential:
    """The variant with every edit, and the curve."""

    variant: Variant
    curve: tuple[SequencePoint, ...]

    @property
    def falls_at(self) -> int | None:
        """The first count of edits with fewer than .7 of the neighbours kept; None: none that was measured."""
        return next(
            (one.n_edits for one in self.curve if one.neighbours_kept.of and one.neighbours_kept.value < LOW), None
        )

    def __str__(self) -> str:
        rows = [
            f"  {p.n_edits:3}  efficacy {p.efficacy}  paraphrase {p.paraphrase}  neighbours {p.neighbours_kept}  "
            f"unrelated KL {p.unrelated_kl}  ‖Δ‖ {p.norm:.3g}"
            for p in self.curve
        ]
        end = (
            "neighbours kept stay at .7 or more"
            if self.falls_at is None
            else f"neighbours below .7 at {self.falls_at} edits"
        )
        return "\n".join([*rows, end])


def edit_sequence(
    client: Client,
    facts: Sequence[Fact],
    *,
    layers: int | Sequence[int] | None = None,
    keep_earlier: bool = True,
    every: int = 1,
    base: Answers | None = None,
    unrelated: Sequence[str] | None = None,
    on_point: Callable[[SequencePoint], None] | None = None,
    progress: bool = True,
    model: str = "",
    **options: Any,
) -> Sequential:
    """Edit one fact after the other, each on the variant so far, and measure after every `every` of them.

    `keep_earlier`: preserve the keys of the facts edited before, where there is one layer (method exact and null_space).
    `on_point` hears each point of the curve as it is measured. `options`: of `edit_facts`.
    """
    if not facts or every < 1:
        raise InvalidArgument(f"edit_sequence needs facts, and every of 1 or more; got {len(facts)} and {every}")
    at = layers if layers is not None else default_layers(client.describe(model))
    before = base or Answers(client, model=model)
    variant: Variant | None = None
    keys: list[Any] = []
    curve: list[SequencePoint] = []
    with progress_bar("facts", "prompts", show=progress) as bar:
        for number, fact in enumerate(facts, 1):
            hooks = variant_hooks(variant) if variant is not None else []
            earlier = np.stack(keys, axis=1) if keys and keep_earlier else None
            edited = edit_facts(
                client, fact, layers=at, hooks=hooks, preserve=earlier, progress=False, model=model, **options
            )
            if len(edited.layers) == 1:
                keys += [one.key for one in edited.values]
            variant = edited.variant if variant is None else variant + edited.variant
            if number % every == 0 or number == len(facts):
                curve.append(_point(client, facts[:number], variant, before, unrelated, model))
                if on_point is not None:
                    on_point(curve[-1])
            bar(number, len(facts))
    assert variant is not None
    return Sequential(variant, tuple(curve))


def _point(
    client: Client, facts: Sequence[Fact], variant: Variant, base: Answers, unrelated: Sequence[str] | None, model: str
) -> SequencePoint:
    scores = measure_facts(
        client, facts, hooks=variant_hooks(variant), base=base, unrelated=unrelated, n_generated=0, model=model
    )
    norm = next(iter(variant.deltas.values())).norm()
    return SequencePoint(
        len(facts), scores.efficacy, scores.paraphrase, scores.neighbours_kept, scores.unrelated_kl, norm
    )
