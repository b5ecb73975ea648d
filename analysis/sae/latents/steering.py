"""Steering by a latent: how the probability of a set of words answers its dose, beside random latents of equal norm.

The measure needs no judge: the words are fixed before anything is steered, and the model's own next-token distribution
says how likely they became. What it costs is told by the model unsteered: the perplexity of what was generated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....clients import Client, Hook, Input, InvalidArgument, LogProb, NotFound, SaeInfo, capture, edit_latents
from ...plots.style import GREY, PALETTE, Figure, finished, new, styled, title

__all__ = ["DoseResponse", "dose_response", "word_ids"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class DoseResponse:
    """What strengths of one latent did, and the same strengths of others."""

    latent: int
    strengths: Floats
    """[strength], in units of `unit` activations of the latent."""
    concept: Floats
    """[strength]: mean probability that the next token is one of the words, over the prompts."""
    controls: Mapping[int, Floats]
    """Latent → the same, its edit of equal norm."""
    perplexity: Floats
    """[strength]: of the steered continuations, by the model unsteered."""
    control_perplexity: Floats
    """[strength]: the same of the first control."""
    words: tuple[str, ...]
    texts: tuple[str, ...]
    """[strength]: what the first prompt became."""
    unit: float = 1.0

    @property
    def spearman(self) -> float:
        """Rank correlation of strength and concept: 1 for a monotone dose response."""
        stats: Any = import_module("scipy.stats")
        return float(stats.spearmanr(self.strengths, self.concept).statistic)

    @property
    def rank(self) -> int:
        """How many controls do at least as well at the largest strength."""
        return sum(float(values[-1]) >= float(self.concept[-1]) for values in self.controls.values())

    @property
    def p_value(self) -> float:
        """Of a permutation test: that a random latent would do as well."""
        return (self.rank + 1) / (len(self.controls) + 1)

    def markdown(self) -> str:
        """A table, a row a strength."""
        others = np.stack(list(self.controls.values()))
        lines = ["| strength | p(words) | random latents: median | best | perplexity | of a random latent |"]
        lines.append("| ---: | ---: | ---: | ---: | ---: | ---: |")
        for i, strength in enumerate(self.strengths):
            row = [
                f"{strength:g}",
                f"{self.concept[i]:.4f}",
                f"{np.median(others[:, i]):.4f}",
                f"{others[:, i].max():.4f}",
            ]
            lines.append(
                "| " + " | ".join([*row, f"{self.perplexity[i]:.1f}", f"{self.control_perplexity[i]:.1f}"]) + " |"
            )
        told = (
            f"Latent {self.latent}; words {', '.join(map(repr, self.words))}; Spearman {self.spearman:.2f}; "
            f"{self.rank} of {len(self.controls)} random latents do as well (p = {self.p_value:.3f})."
        )
        return "\n".join([*lines, "", told])

    def figure(self, *, path: str | Path | None = None) -> Figure:
        """Dose and response, the controls in grey, with the perplexity below."""
        return _figure(self, path=path)


@styled
def _figure(found: DoseResponse, *, path: str | Path | None) -> Figure:
    figure, axes = new(6.4, 3.6)
    for index, values in enumerate(found.controls.values()):
        label = f"{len(found.controls)} random latents" if index == 0 else None
        axes.plot(found.strengths, values, color=GREY, linewidth=0.8, alpha=0.7, label=label)
    axes.plot(found.strengths, found.concept, color=PALETTE[0], marker="o", label=f"latent {found.latent}", zorder=3)
    axes.set(xlabel=f"strength (added: × {found.unit:g})", ylabel="p(next token is one of the words)")
    for strength, value, perplexity in zip(found.strengths, found.concept, found.perplexity, strict=True):
        axes.annotate(
            f"{perplexity:.0f}", (strength, value), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=7
        )
    axes.grid(axis="y", zorder=0)
    axes.legend(loc="best")
    title(
        axes, f"Steering by latent {found.latent}", "numbers: perplexity of the continuations, by the model unsteered"
    )
    return finished(figure, path)


def word_ids(client: Client, words: Sequence[str], *, model: str = "") -> dict[str, int]:
    """The token of each word. Raises InvalidArgument for a word that is no single token."""
    return {word: client.token(word, model=model) for word in words}


def dose_response(
    client: Client,
    sae: str,
    latent: int,
    directions: NDArray[np.floating],
    prompts: Sequence[str],
    words: Mapping[str, int],
    *,
    unit: float,
    strengths: Sequence[float] = (0, 1, 2, 4, 8, 16),
    controls: Sequence[int],
    n_new: int = 24,
    model: str = "",
    progress: bool = True,
) -> DoseResponse:
    """Add strength · unit to a latent at every token but the first, and see how likely `words` are to come next.

    `directions`: W_dec, [d_sae, d_in]: a control's addition is scaled so that it moves the stream as far. `unit`: an
    activation, such as the latent's mean where it fires. Raises NotFound for an SAE that is not loaded, InvalidArgument
    for latents that it has not, controls that hold the latent, and directions of another shape.
    """
    known = {item.name: item for item in client.saes(model=model)}
    if sae not in known:
        raise NotFound(
            f"no SAE {sae!r} is loaded; loaded: {', '.join(known) or 'none'}; load it first (client.load_sae)"
        )
    info = known[sae]
    _check(info, latent, controls, np.shape(directions))
    if isinstance(prompts, str) or not prompts:
        raise InvalidArgument(f"prompts is a list of at least one text, got {prompts!r}")
    if not isinstance(words, Mapping) or not words:  # pyright: ignore[reportUnnecessaryIsInstance] - notebooks hand lists
        raise InvalidArgument(f"words is each word's token, at least one: word_ids(client, [' sea']); got {words!r}")
    site = info.site
    norms = np.linalg.norm(np.asarray(directions, dtype=np.float64), axis=1)

    def plan(which: int, strength: float) -> list[Hook]:
        if strength == 0:
            return []
        added = strength * unit * float(norms[latent] / norms[which])
        return [edit_latents(site, sae, {which: {"add": added}}, spans=[(1, None)])]

    everyone = [latent, *controls]
    inputs = [Input(name=f"p{i}", text=text) for i, text in enumerate(prompts)]
    plans = [plan(which, strength) for which in everyone for strength in strengths]
    swept = client.sweep(inputs, [LogProb(token) for token in words.values()], plans, progress=progress, model=model)
    shape = (len(inputs), len(everyone), len(strengths))
    stacked = [swept.array(target=t).values.reshape(shape) for t in range(len(words))]
    probability = np.exp(np.stack(stacked)).sum(axis=0).mean(axis=0)
    fluent = [_continued(client, prompts, plan(latent, strength), n_new, model) for strength in strengths]
    other = [_continued(client, prompts, plan(controls[0], strength), n_new, model) for strength in strengths]
    return DoseResponse(
        latent,
        np.asarray(strengths, dtype=np.float64),
        probability[0],
        dict(zip(controls, probability[1:], strict=True)),
        np.array([found[0] for found in fluent]),
        np.array([found[0] for found in other]),
        tuple(words),
        tuple(found[1] for found in fluent),
        unit,
    )


def _check(info: SaeInfo, latent: int, controls: Sequence[int], shape: tuple[int, ...]) -> None:
    if latent in controls or not len(controls):
        raise InvalidArgument(f"controls are other latents than {latent}, at least one; got {list(controls)}")
    outside = [index for index in (latent, *controls) if not 0 <= index < info.d_sae]
    if outside:
        raise InvalidArgument(f"latents {outside[:8]} are outside 0 … {info.d_sae - 1} of SAE {info.name!r}")
    if shape != (info.d_sae, info.d_in):
        raise InvalidArgument(f"directions is W_dec, [d_sae {info.d_sae}, d_in {info.d_in}], got {list(shape)}")


def _continued(client: Client, prompts: Sequence[str], hooks: list[Hook], n_new: int, model: str) -> tuple[float, str]:
    """Perplexity of the steered continuations, by the model unsteered; and the first of them."""
    inputs = [Input(name=f"p{i}", text=text) for i, text in enumerate(prompts)]
    made = client.generate(inputs, hooks=hooks, max_new_tokens=n_new, ignore_eos=True, model=model)
    whole = {name: Input(name=name, token_ids=tuple(one.token_ids)) for name, one in made.inputs.items()}
    read = client.run(list(whole.values()), capture=[capture("logits", reduce="next_logprob")], model=model)
    told = [one.captures["logits"][-n_new:] for one in read.inputs.values()]
    return float(np.exp(-np.concatenate(told).mean())), next(iter(made.inputs.values())).text
