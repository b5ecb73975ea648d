"""Relearning: how much of a removed behaviour a few steps of fine-tuning on a handful of examples bring back.

A removal that falls to them has hidden the behaviour, not taken it out (Lynch et al. 2024; Tamirisa et al. 2024 report
representation-level breakers undone within a few steps).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....clients import Client, Variant
from ....clients.progress import progress_bar
from ....clients.requests.prompts import Prompt, to_input
from ....protos.errors import InvalidArgument, Unsupported
from ....protos.spec import Plan
from ....protos.variants.delta import Delta
from ....protos.variants.manifest import Base as BaseModel, Manifest
from ...reports.subject import Subject
from ...reports.tried import tried
from ...tuning.base import load_base
from ...tuning.config import TuneConfig
from ...tuning.examples import TrainExample, to_tokens
from ...tuning.few_steps import few_steps, put_into
from ...tuning.same_model import require_same_model
from .behaviour import BehaviourScores, score_behaviour

__all__ = ["RELEARN", "Relearned", "relearn"]

RELEARN = TuneConfig(method="lora", batch_size=4, lr=5e-4, rank=8, losses={"task": 1.0}, normalise_losses=False)
"""LoRA of rank 8 at all weights of all layers, 4 examples a step."""
STEPS = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True, eq=False)
class Relearned:
    """The behaviour after so many steps. Each score stands beside over-refusal and KL, of the removal and the steps together."""

    steps: tuple[int, ...]
    """0 first: the removal alone."""
    scores: tuple[BehaviourScores, ...]
    """[step]; "without" is the model before the removal, "with" that after it and the steps."""
    control: tuple[BehaviourScores, ...]
    """[step]: after as many steps on `control` examples; none without them."""
    variants: tuple[Variant, ...]
    """[step − the 0]: what the steps added to the removal."""
    n_examples: int
    lr: float

    @property
    def returned(self) -> NDArray[np.float64]:
        """[step]: share of what the removal took from the positives that is back."""
        return _returned(self.scores)

    @property
    def returned_by_control(self) -> NDArray[np.float64]:
        """[step]: the same by training on something else."""
        return _returned(self.control)

    def __str__(self) -> str:
        told = [f"relearning on {self.n_examples} examples, learning rate {self.lr:g}:"]
        for kind, scores in (("", self.scores), (" (control)", self.control)):
            told += [
                f"{step} steps{kind}: returned {back:.0%}; {one}"
                for step, back, one in zip(self.steps, _returned(scores), scores, strict=False)
            ]
        return "\n".join(told)


def relearn(
    client: Client,
    base_folder: str | Path,
    removal: Variant,
    examples: Sequence[TrainExample],
    positives: Sequence[Prompt],
    negatives: Sequence[Prompt],
    tokens: Sequence[int],
    *,
    steps: Sequence[int] = STEPS,
    control: Sequence[TrainExample] = (),
    config: TuneConfig = RELEARN,
    model: str = "",
    progress: bool = True,
) -> Relearned:
    """Fine-tune the model with the removal in its weights on `examples` of the behaviour, and score it after each of `steps`.

    `base_folder`: the served model's own folder. `examples` are not among `positives`, on which it is scored: what comes
    back there was not taught. `control`: examples of something else, for the same steps: what any training brings back.
    Training is in this process (torch), scoring on the server, where the removal and the steps are loaded privately.
    Raises Unsupported for a removal with hooks (`ablate_direction(…, weights_only=True)` has none), InvalidArgument for
    steps that are not increasing, FailedPrecondition where the folder is not the served model.
    """
    counts = tuple(steps)
    if not counts or counts[0] < 1 or any(a >= b for a, b in pairwise(counts)) or not examples:
        raise InvalidArgument(
            f"relearning takes examples and increasing numbers of steps from 1 on, got {len(examples)} and {counts}"
        )
    if config.method != "lora":
        raise InvalidArgument(f"relearning is plain fine-tuning, method 'lora'; got {config.method!r}")
    if removal.plan.hooks:
        sites = ", ".join(dict.fromkeys(one.site for one in removal.plan.hooks))
        raise Unsupported(
            f"the removal has hooks ({sites}), and fine-tuning here is of weights; give one of weights alone "
            "(ablate_direction(…, weights_only=True))"
        )
    known = [(one.prompt,) for one in (*examples, *control)]
    for one in map(to_input, positives):
        if (one.text,) in known or (one.messages,) in known:
            raise InvalidArgument(
                f"{(one.text or one.messages)!r} is among the examples; score on prompts that were not taught"
            )
    config = replace(config, steps=counts[-1], checkpoints=0)
    found: list[tuple[BehaviourScores, ...]] = []
    made: list[Variant] = []
    with tried(client, removal, model=model) as subject:
        first = score_behaviour(client, positives, negatives, tokens, variants=subject.variants, model=model)
        for own in (examples, control):
            if not own:
                found.append(())
                continue
            base = load_base(base_folder, device=config.device)
            put_into(base, removal.deltas)
            lessons = [to_tokens(base.tokenizer, example) for example in own]
            require_same_model(base, subject, lessons[0])
            with progress_bar("relearning", "steps", show=progress) as bar:
                taught = few_steps(base, lessons, config, counts, bar)
            variants = [_variant(client, model, deltas, n) for n, deltas in zip(counts, taught, strict=True)]
            made = made or variants
            found.append((first, *(_scored(subject, one, positives, negatives, tokens) for one in variants)))
    return Relearned((0, *counts), found[0], found[1], tuple(made), len(examples), config.lr)


def _variant(client: Client, model: str, deltas: Mapping[str, Delta], n: int) -> Variant:
    manifest = Manifest(
        name=f"relearned-{n}", base=BaseModel.of(client.describe(model)), method="relearn", options={"steps": n}
    )
    return Variant(deltas, Plan(), manifest)


def _scored(
    subject: Subject, variant: Variant, positives: Sequence[Prompt], negatives: Sequence[Prompt], tokens: Sequence[int]
) -> BehaviourScores:
    with tried(subject.client, variant, model=subject.model) as also:
        both = (*subject.variants, *also.variants)
        return score_behaviour(subject.client, positives, negatives, tokens, variants=both, model=subject.model)


def _returned(scores: Sequence[BehaviourScores]) -> NDArray[np.float64]:
    if not scores:
        return np.zeros(0)
    before, removed = (float(scores[0].positives[i].mean()) for i in range(2))
    now = np.array([float(one.positives[1].mean()) for one in scores])
    return (now - removed) / (before - removed) if before != removed else np.full(len(scores), np.nan)
