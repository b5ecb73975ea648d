"""Forgetting measured on texts: how much worse the model predicts one corpus, at a fixed cost on the other, when latents are clamped.

A cheaper and finer measure than questions: every token counts, so that small effects show where no answer changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....clients import Client, Hook, capture
from ....clients.progress import progress_bar
from ....protos.errors import InvalidArgument
from ..data.batches import require_seed
from ..data.corpus import Texts, of
from ..latents.statistics import compare, count_latents
from ..latents.stream import CONTEXT
from ..model.loaded import require_trained
from ..model.on_server import opened
from .controls import random_clamps
from .forgetting import choose_latents, clamp_hook
from .results import Clamp

__all__ = ["TextForgetting", "text_forgetting"]

Floats = NDArray[np.float64]
_DRAWS = 2000


@dataclass(frozen=True, slots=True, eq=False)
class TextForgetting:
    """Rises of cross-entropy, in nats a token, over the multipliers; the first point is no clamp."""

    multipliers: tuple[float, ...]
    latents: tuple[int, ...]
    """Those clamped."""
    forget: Floats
    """[multiplier, text]"""
    retain: Floats
    """[multiplier, text]"""
    controls: tuple[tuple[Floats, Floats], ...]
    """[draw]: the same with as many latents at random."""
    cost: float
    """Rise on the retain texts at which sides are compared."""

    @property
    def score(self) -> float:
        """Rise on the forget texts where the retain texts' first reaches `cost`; or at the largest multiplier, if it never does."""
        return _at_cost(self.forget.mean(axis=1), self.retain.mean(axis=1), self.cost)

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, by resampling the texts of both sides."""
        rng, found = np.random.default_rng(0), list[float]()
        for _ in range(_DRAWS):
            sides = [side[:, rng.integers(side.shape[1], size=side.shape[1])] for side in (self.forget, self.retain)]
            found.append(_at_cost(sides[0].mean(axis=1), sides[1].mean(axis=1), self.cost))
        low, high = np.quantile(found, (0.025, 0.975))
        return float(low), float(high)

    @property
    def control_scores(self) -> tuple[float, ...]:
        """[draw]: the score of random latents."""
        return tuple(_at_cost(f.mean(axis=1), r.mean(axis=1), self.cost) for f, r in self.controls)

    @property
    def reaches(self) -> bool:
        """Whether the largest clamp costs so much that sides can be compared at equal cost."""
        return bool(self.retain.mean(axis=1).max() >= self.cost)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "score": self.score,
            "interval": list(self.interval),
            "control_scores": list(self.control_scores),
            "reaches": self.reaches,
            "cost": self.cost,
            "latents": list(self.latents),
            "multipliers": list(self.multipliers),
            "forget": self.forget.mean(axis=1).tolist(),
            "retain": self.retain.mean(axis=1).tolist(),
        }


def text_forgetting(
    client: Client,
    sae: str | Path,
    *,
    forget_texts: Texts,
    retain_texts: Texts,
    forget_held: Sequence[str],
    retain_held: Sequence[str],
    threshold: float = 0.01,
    n_latents: int = 20,
    multipliers: Sequence[float] = (5.0, 20.0, 50.0, 100.0, 200.0),
    cost: float = 0.05,
    context: int = CONTEXT,
    max_tokens: int | None = None,
    control_draws: int = 1,
    seed: int = 0,
    allow_untrained: bool = False,
    folder: str | Path | None = None,
    site: str = "",
    model: str = "",
    progress: bool = True,
) -> TextForgetting:
    """Latents are chosen and clamped as by `forgetting`; what it does is read from held-out texts of both corpora.

    `forget_held`, `retain_held`: the first `context` tokens of each are read, a forward a text and clamp. An SAE whose latents
    do not qualify scores 0. Raises FailedPrecondition for an SAE that was never trained (without `allow_untrained`),
    InvalidArgument for no texts, and for multipliers that do not rise.
    """
    require_seed(seed)
    if not forget_held or not retain_held:
        raise InvalidArgument("give at least one held-out text of each corpus")
    strengths = [float(multiplier) for multiplier in multipliers]
    if not strengths or strengths != sorted(set(strengths)) or strengths[0] < 0 or not cost > 0:
        raise InvalidArgument(f"multipliers are 0 or more and rise, and cost is above 0; got {strengths} and {cost}")
    with opened(client, sae, folder=folder, site=site, model=model) as (info, loaded):
        if not allow_untrained:
            require_trained(loaded)
        counted = [
            count_latents(client, info, of(texts), context=context, max_tokens=max_tokens, progress=progress)
            for texts in (forget_texts, retain_texts)
        ]
        frequencies = compare(*counted, names=("forget", "retain"))
        chosen = Clamp(threshold, n_latents, strengths[-1], choose_latents(frequencies, threshold, n_latents))
        drawn = [random_clamps([chosen], frequencies, seed, draw)[0].latents for draw in range(control_draws)]
        held = {
            "forget": _tokens(client, forget_held, context, info.model),
            "retain": _tokens(client, retain_held, context, info.model),
        }
        steps = 1 + (1 + len(drawn)) * len(strengths)
        with progress_bar("forgetting", "steps", show=progress) as bar:
            base, done = {side: _losses(client, texts, None, info.model) for side, texts in held.items()}, 1
            curves: list[tuple[Floats, Floats]] = []
            for latents in (chosen.latents, *drawn):
                points: dict[str, list[Floats]] = {side: [np.zeros(len(texts))] for side, texts in held.items()}
                for multiplier in strengths:
                    hook = clamp_hook(info, latents, multiplier) if latents else None
                    for side, texts in held.items():
                        now = base[side] if hook is None else _losses(client, texts, hook, info.model)
                        points[side].append(now - base[side])
                    done += 1
                    bar(done, steps)
                curves.append((np.stack(points["forget"]), np.stack(points["retain"])))
    return TextForgetting((0.0, *strengths), chosen.latents, *curves[0], tuple(curves[1:]), float(cost))


def _tokens(client: Client, texts: Sequence[str], context: int, model: str) -> list[tuple[int, ...]]:
    return [tuple(client.tokenize(text, model=model).token_ids[:context]) for text in texts]


def _losses(client: Client, texts: Sequence[tuple[int, ...]], hook: Hook | None, model: str) -> Floats:
    """[text]: mean −log p of its tokens but the first, nats."""
    run = client.run(
        list(texts),
        hooks=[] if hook is None else [hook],
        capture=[capture("logits", reduce="next_logprob")],
        model=model,
        progress=False,
    )
    read: Mapping[str, Any] = run.inputs
    return np.array(
        [
            -float(np.asarray(read[name]["logits"], dtype=np.float64)[: len(ids) - 1].mean())
            for name, ids in zip(read, texts, strict=True)
        ]
    )


def _at_cost(forget: Floats, retain: Floats, cost: float) -> float:
    """The rise on forget texts where that on retain texts first reaches `cost`, in a line between multipliers."""
    for at in range(1, len(retain)):
        if retain[at] >= cost:
            share = (cost - retain[at - 1]) / (retain[at] - retain[at - 1])
            return float(forget[at - 1] + share * (forget[at] - forget[at - 1]))
    return float(forget[-1])
