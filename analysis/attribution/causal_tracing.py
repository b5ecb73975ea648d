"""Causal tracing: noise on the subject's embeddings, then one clean state put back at a time.

Source: Meng et al. 2022 (ROME), section 2 and its released code: noise of 3 standard deviations of subject embeddings,
10 draws, single states of the residual stream and windows of 10 layers of attention and MLP outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Hook, Input, NamedArray, capture, hook, patch as patch_hook
from ...clients.requests.prompts import Prompt, to_input
from ...protos.edits import Noise
from ...protos.errors import InvalidArgument
from ...protos.metrics import LogProb
from ...protos.model import MAX_INPUTS, ModelInfo, Tokenized
from ...protos.sites import LAYER_SITES
from .grid import Layers, chosen_layers

__all__ = ["Tracing", "subject_positions", "subject_sigma", "trace", "window_of"]

CLEAN = "clean"
WINDOWED = ("mlp_out", "attn_out")


@dataclass(frozen=True, slots=True, eq=False)
class Tracing:
    """How much of the answer's probability each restored state brings back."""

    per_seed: NamedArray
    """Probability of the answer with the state restored: [seed, site, layer, position]."""
    corrupt: NamedArray
    """[seed]: with the noise alone."""
    clean: float
    """Without noise."""
    answer: int
    """Token id."""
    subject: tuple[int, ...]
    """Positions that were noised."""
    std: float
    """Of the noise, in units of the embedding."""
    tokens: tuple[str, ...]

    @property
    def effect(self) -> NamedArray:
        """Indirect effect, mean over seeds of p_restored − p_corrupt: [site, layer, position]."""
        change = self.per_seed.values - self.corrupt.values[:, None, None, None]
        return NamedArray(change.mean(axis=0), {k: v for k, v in self.per_seed.axes.items() if k != "seed"})

    @property
    def total_effect(self) -> float:
        """p_clean − p_corrupt, mean over seeds: what the noise took away."""
        return self.clean - float(np.mean(self.corrupt.values))


def trace(
    client: Client,
    prompt: Prompt,
    subject: str | Sequence[int],
    *,
    answer: int | str | None = None,
    sites: Sequence[str] = ("resid_post", "mlp_out", "attn_out"),
    layers: Layers = None,
    positions: Sequence[int] | None = None,
    window: int = 10,
    noise: float = 3.0,
    sigma: float | None = None,
    seeds: int = 10,
    share: bool = True,
    progress: bool = True,
    model: str = "",
) -> Tracing:
    """Trace one prompt in one sweep. Effects are of the probability of `answer` (None: the likeliest next token).

    `subject`: a part of the prompt's text, or positions. `noise` × `sigma` is the noise's deviation; `sigma` None: over
    all entries of this subject's embeddings (`subject_sigma` takes many subjects, as ROME does). `window`: layers
    restored together at mlp_out and attn_out, around the one named; the residual stream is restored one layer at a time.
    Raises InvalidArgument for a subject that does not occur once, and for fewer than 1 or too many seeds.
    """
    if not 1 <= seeds < MAX_INPUTS:
        raise InvalidArgument(f"seeds must be in 1 … {MAX_INPUTS - 1}, got {seeds}")
    if noise <= 0:
        raise InvalidArgument(f"noise must be above 0 (ROME: 3 standard deviations), got {noise}")
    info, item = client.describe(model), client.tokenize(prompt, model=model)
    where = subject_positions(item, subject)
    std = noise * (subject_sigma(client, [(prompt, where)], model=model) if sigma is None else sigma)
    token = _answer(client, item, answer, model)
    chosen = chosen_layers(layers, info.n_layers)
    at = list(range(len(item.token_ids))) if positions is None else list(positions)
    names = [f"seed {seed}" for seed in range(seeds)]
    noisy = [hook("embed", Noise(std, seed), positions=where, inputs=names[seed]) for seed in range(seeds)]
    whole = [patch_hook("embed", from_input=CLEAN, inputs=names[0])]  # the clean run, measured in the same sweep
    plans: list[list[Hook]] = [[], whole]
    for site, layer, position in product(sites, chosen, at):
        restored = window_of(info, site, layer, window)
        plans.append([patch_hook(one, from_input=CLEAN, positions=position) for one in restored])
    inputs = [Input(token_ids=item.token_ids, name=CLEAN, source_only=True)]
    inputs += [Input(token_ids=item.token_ids, name=name) for name in names]
    sweep = client.sweep(inputs, LogProb(token), plans, hooks=noisy, share=share, progress=progress, model=model)
    found = np.exp(np.stack([np.asarray(sweep.array(name).values) for name in names]))  # [seed, plan]
    axes = {"seed": list(range(seeds)), "site": list(sites), "layer": chosen, "position": at}
    grid = found[:, 2:].reshape(seeds, len(sites), len(chosen), len(at))
    corrupt = NamedArray(found[:, 0], {"seed": list(range(seeds))})
    return Tracing(NamedArray(grid, axes), corrupt, float(found[0, 1]), token, where, std, item.tokens)


def window_of(info: ModelInfo, site: str, layer: int, window: int) -> list[str]:
    """The sites restored together at a layer: a window around it for branch outputs, itself otherwise."""
    if site not in LAYER_SITES:
        raise InvalidArgument(
            f"site {site!r} is no kind of site with layers; for example resid_post, mlp_out, attn_out"
        )
    if not 0 <= layer < info.n_layers:
        raise InvalidArgument(f"layer {layer}; allowed: 0 … {info.n_layers - 1}")
    if site not in WINDOWED:
        return [f"{site}.{layer}"]
    if window < 1:
        raise InvalidArgument(f"window must be 1 or more layers, got {window}")
    first, last = max(0, layer - window // 2), min(info.n_layers, layer + (window + 1) // 2)
    return [f"{site}.{first}:{last}"] if last - first > 1 else [f"{site}.{first}"]


def subject_positions(item: Tokenized, subject: str | Sequence[int]) -> tuple[int, ...]:
    """Positions of the tokens that hold any of a text's characters. Raises InvalidArgument unless it occurs once."""
    n = len(item.token_ids)
    if not isinstance(subject, str):
        found = tuple(int(p) for p in subject)
        if not found or any(not -n <= p < n for p in found):
            raise InvalidArgument(f"subject positions {list(found)} are not in a prompt of {n} tokens")
        return tuple(sorted({p % n for p in found}))
    text = "".join(item.tokens)
    times = text.count(subject) if subject else 0
    if times != 1:
        raise InvalidArgument(f"the subject {subject!r} occurs {times} times in {text!r}; give positions instead")
    start, stop, at = text.index(subject), text.index(subject) + len(subject), 0
    where: list[int] = []
    for position, token in enumerate(item.tokens):
        if at < stop and at + len(token) > start:
            where.append(position)
        at += len(token)
    return tuple(where)


def subject_sigma(client: Client, subjects: Sequence[tuple[Prompt, str | Sequence[int]]], *, model: str = "") -> float:
    """Standard deviation over all entries of the embeddings of these subjects: (prompt, subject) each."""
    rows: list[NDArray[np.float64]] = []
    for prompt, subject in subjects:
        item = client.tokenize(prompt, model=model)
        where = subject_positions(item, subject)
        run = client.run(to_input(prompt), capture=["embed"], model=model)
        rows.append(np.asarray(run["embed"], dtype=np.float64)[list(where)])
    return float(np.concatenate(rows).std())


def _answer(client: Client, item: Tokenized, answer: int | str | None, model: str) -> int:
    if isinstance(answer, str):
        return client.token(answer, model=model)
    if answer is not None:
        return answer
    run = client.run(list(item.token_ids), capture=[capture("logits", positions=-1)], model=model)
    return int(np.asarray(run["logits"], dtype=np.float64)[-1].argmax())
