"""What attention heads look at: previous tokens, duplicates, what followed last time, the name to be copied.

Sources: Elhage et al. 2021 and Olsson et al. 2022 (previous-token and induction heads), Wang et al. 2022 (duplicate-token
and name-mover heads). Patterns are `attn_probs`: [layer, head, query, key].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Input, NamedArray, capture
from ...clients.requests.prompts import Prompt
from ...protos.errors import InvalidArgument
from ...protos.metrics import Logit, LogitDifference
from ..attribution.direct_logit import direct_logit

__all__ = [
    "HeadRoles",
    "NameMovers",
    "copy_effects",
    "duplicate_token",
    "head_roles",
    "induction",
    "name_movers",
    "previous_token",
    "repeated_tokens",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class HeadRoles:
    """Scores in 0 … 1, each [layer, head]: the mean share of attention that goes where the role says."""

    previous_token: NamedArray
    duplicate_token: NamedArray
    induction: NamedArray

    def top(self, role: str, n: int = 5) -> list[tuple[int, int, float]]:
        """The n strongest heads of a role: (layer, head, score)."""
        scores = getattr(self, role, None)
        if not isinstance(scores, NamedArray):
            raise InvalidArgument(f"role {role!r}; allowed: previous_token, duplicate_token, induction")
        return _top(scores, n)


@dataclass(frozen=True, slots=True, eq=False)
class NameMovers:
    """How far heads read a token at the end and write it out again, each [layer, head], mean over prompts."""

    attention: NamedArray
    """From the position that predicts to the token."""
    copy: NamedArray
    """What the head would write towards the metric if it attended to the token alone; logits."""
    score: NamedArray
    """attention · copy: what it does write, by reading the token; logits."""

    def top(self, n: int = 5) -> list[tuple[int, int, float]]:
        """The n heads with the largest |score|: (layer, head, score)."""
        return _top(self.score, n)


# ---- from patterns ----


def previous_token(patterns: Any) -> NamedArray:
    """[layer, head]: mean attention from each token to the one before it. Raises InvalidArgument for other shapes."""
    found = _patterns(patterns)
    if found.shape[2] < 2:
        raise InvalidArgument("previous_token needs a prompt of two tokens or more")
    return _named(np.diagonal(found, -1, axis1=2, axis2=3).mean(axis=2))


def duplicate_token(patterns: Any, token_ids: Sequence[int]) -> NamedArray:
    """[layer, head]: mean attention from each repeated token to its earlier copies.

    `token_ids` are those of the patterns' prompt. Raises InvalidArgument when no token repeats.
    """
    found, tokens = _patterns(patterns), np.asarray(token_ids)
    earlier = np.tril(tokens[:, None] == tokens[None, :], -1)
    return _attention_to(
        found, earlier, tokens, "no token of the prompt repeats, so there are no duplicates to look at"
    )


def induction(patterns: Any, token_ids: Sequence[int]) -> NamedArray:
    """[layer, head]: mean attention from each repeated token to what followed its earlier copies.

    `token_ids` are those of the patterns' prompt. A copy right before the token does not count: what followed it is the
    token itself. Raises InvalidArgument when no token repeats that far apart.
    """
    found, tokens = _patterns(patterns), np.asarray(token_ids)
    follows = np.zeros((len(tokens), len(tokens)), dtype=bool)
    follows[:, 1:] = tokens[:, None] == tokens[None, :-1]  # [query, key]: the token before the key is the query's
    return _attention_to(found, np.tril(follows, -1), tokens, "no token repeats two or more positions later")


def copy_effects(values: Any, directions: Any) -> Floats:
    """[layer, head, pos]: what each head would write along a direction of the stream by attending to each position alone.

    `values`: `v`, [layer, pos, kv_head, d_head]. `directions`: [layer, head, d_head], the direction as each head's output
    sees it (`head_slopes` of `attribution.direct_logit`). Heads share key-value heads in order, as all families here do.
    """
    v, slopes = np.asarray(values, dtype=np.float64), np.asarray(directions, dtype=np.float64)
    if v.ndim != 4 or slopes.ndim != 3 or v.shape[0] != slopes.shape[0] or slopes.shape[1] % v.shape[2]:
        raise InvalidArgument(
            f"copy_effects takes v [layer, pos, kv_head, d_head] and directions [layer, head, d_head], "
            f"got {list(v.shape)} and {list(slopes.shape)}"
        )
    shared = np.repeat(v, slopes.shape[1] // v.shape[2], axis=2)
    return np.einsum("lphd,lhd->lhp", shared, slopes)


# ---- from a model ----


def head_roles(
    client: Client,
    *,
    length: int = 32,
    n_prompts: int = 4,
    vocabulary: Sequence[int] = (),
    seed: int = 0,
    model: str = "",
) -> HeadRoles:
    """Roles on repeated random tokens, where only the order can be known: mean over `n_prompts` of 1 + 2 · `length`.

    `vocabulary`: token ids to draw from; default: all but the first 1 % (where special tokens stand). Raises
    InvalidArgument when it is smaller than `length` + 1 or the prompt longer than the model's context.
    """
    info = client.describe(model)
    pool = (
        np.asarray(vocabulary, dtype=np.int64)
        if len(vocabulary)
        else np.arange(info.vocab_size // 100, info.vocab_size)
    )
    prompts = repeated_tokens(pool, length, n_prompts, seed=seed)
    found: list[tuple[NamedArray, NamedArray, NamedArray]] = []
    for tokens in prompts.tolist():  # one at a time: patterns grow with the square of the length
        patterns = client.run(tokens, capture=["attn_probs.*"], model=model).stack("attn_probs")
        found.append((previous_token(patterns), duplicate_token(patterns, tokens), induction(patterns, tokens)))
    return HeadRoles(*(_mean(list(role)) for role in zip(*found, strict=True)))


def repeated_tokens(vocabulary: Any, length: int, n_prompts: int, *, seed: int = 0) -> Ints:
    """[prompt, 1 + 2·length]: a first token to rest attention on, then `length` distinct random tokens, twice."""
    pool = np.asarray(vocabulary, dtype=np.int64)
    if length < 2 or n_prompts < 1 or len(pool) < length + 1:
        raise InvalidArgument(
            f"repeated tokens need length ≥ 2, n_prompts ≥ 1 and a vocabulary of length + 1 or more; "
            f"got length {length}, n_prompts {n_prompts}, {len(pool)} tokens"
        )
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.choice(pool, length + 1, replace=False) for _ in range(n_prompts)])
    return np.concatenate([drawn, drawn[:, 1:]], axis=1)


def name_movers(
    client: Client,
    prompts: Sequence[Prompt],
    metrics: Sequence[Logit | LogitDifference],
    positions: Sequence[int],
    *,
    model: str = "",
) -> NameMovers:
    """Heads that carry a token (the indirect object, say) to the end and raise the metric by it, mean over prompts.

    A metric and a position of the token to be carried (negative: from the end) a prompt. The prediction is made at the
    metric's position. Costs four forwards and a backward a prompt. Raises InvalidArgument when the lengths differ.
    """
    if not len(prompts) == len(metrics) == len(positions) > 0:
        raise InvalidArgument(
            f"name_movers needs a metric and a position a prompt, got {len(prompts)} prompts, {len(metrics)} metrics and "
            f"{len(positions)} positions"
        )
    found = [_name_mover(client, *example, model) for example in zip(prompts, metrics, positions, strict=True)]
    attention, copy = (np.stack([item[index] for item in found]) for index in (0, 1))
    return NameMovers(*(_named(part.mean(axis=0)) for part in (attention, copy, attention * copy)))


def _name_mover(
    client: Client, prompt: Prompt, metric: Logit | LogitDifference, position: int, model: str
) -> tuple[Floats, Floats]:
    """Attention to the token and copy effect of one prompt, each [layer, head]."""
    direct = direct_logit(client, prompt, metric, heads=True, model=model)
    tokens = client.tokenize(prompt, model=model).token_ids
    if not -len(tokens) <= position < len(tokens) or position % len(tokens) > direct.position:
        raise InvalidArgument(
            f"the token to be carried is at position {position}, the prediction at {direct.position} of {len(tokens)} tokens"
        )
    position %= len(tokens)
    reads = [capture("attn_probs.*", positions=direct.position), capture("v.*", positions=position)]
    run = client.run(Input(token_ids=tokens), capture=reads, model=model)
    copy = copy_effects(run.stack("v"), direct.head_slopes)[:, :, 0]
    return run.stack("attn_probs")[:, :, 0, position].astype(np.float64), copy


# ---- small parts ----


def _patterns(patterns: Any) -> Floats:
    found = np.asarray(patterns, dtype=np.float64)
    if found.ndim != 4 or found.shape[2] != found.shape[3]:
        raise InvalidArgument(
            f"patterns are [layer, head, query, key] of a whole prompt, got shape {list(found.shape)}"
        )
    return found


def _attention_to(patterns: Floats, keys: NDArray[np.bool_], tokens: NDArray[Any], why_not: str) -> NamedArray:
    """Mean over the queries that have any of `keys` [query, key] of the attention to them."""
    if len(tokens) != patterns.shape[2]:
        raise InvalidArgument(f"{len(tokens)} token ids for patterns of {patterns.shape[2]} positions")
    queries = np.flatnonzero(keys.any(axis=1))
    if not len(queries):
        raise InvalidArgument(why_not)
    return _named((patterns * keys).sum(axis=3)[:, :, queries].mean(axis=2))


def _named(values: Floats) -> NamedArray:
    return NamedArray(values, {"layer": range(values.shape[0]), "head": range(values.shape[1])})


def _mean(arrays: Sequence[NamedArray]) -> NamedArray:
    return _named(np.mean([array.values for array in arrays], axis=0))


def _top(scores: NamedArray, n: int) -> list[tuple[int, int, float]]:
    order = np.argsort(-np.abs(scores.values), axis=None)[:n].tolist()
    heads = (divmod(index, scores.shape[1]) for index in order)
    return [(layer, head, float(scores.values[layer, head])) for layer, head in heads]
