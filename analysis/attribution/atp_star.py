"""AtP*: two corrections of attribution patching, for what it misses most.

Source: Kramár et al. 2024. *QK fix*: a saturated softmax has almost no gradient, so for queries and keys the attention
pattern is recomputed with the other prompt's value, and its change times ∂m/∂pattern is the estimate. *GradDrop*: paths
whose contributions cancel hide a node, so |AtP| is averaged over backward passes that each leave out one layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Input, NamedArray, patch as patch_hook
from ...clients.requests.prompts import Prompts
from ...protos.errors import Unsupported
from ...protos.metrics import Metric, Target
from ...protos.model import MAX_INPUTS, ModelInfo
from .grid import Heads, Layers, Positions, chosen_layers, make_grid, n_heads
from .pairs import Direction, Pair, Side, check_direction, make_pairs, same_length
from .taylor import Attribution, check_gradients, patterns, score_rows

__all__ = ["attention_scale", "grad_drop", "qk_fix", "refocus"]

Floats = NDArray[np.float64]


def qk_fix(
    client: Client,
    clean: Prompts,
    corrupt: Prompts,
    metric: Metric | Sequence[Metric],
    *,
    kinds: Sequence[str] = ("q", "k"),
    layers: Layers = None,
    direction: Direction = "denoise",
    model: str = "",
) -> dict[str, Attribution]:
    """The estimate for every query ("q": [layer, position, head]) and key ("k": [layer, position, kv head]).

    Raises Unsupported where attention patterns offer no gradient, or scores are not a multiple of q · k (softcap).
    """
    base, other = check_direction(direction)
    pairs = make_pairs(client, clean, corrupt, metric, model=model)
    n_tokens, info = same_length(pairs, "AtP*"), client.describe(model)
    if any(kind not in ("q", "k") for kind in kinds):
        raise Unsupported(
            f"the QK fix is for the kinds q and k, got {list(kinds)}; score v and z by attribution_patching"
        )
    chosen = chosen_layers(layers, info.n_layers)
    _check_patterns(info)
    if len({(n_heads(info, "q", layer), n_heads(info, "k", layer)) for layer in chosen}) > 1:
        raise Unsupported(
            f"layers {chosen} differ in heads, so their scores are no one array; name layers= that are alike"
        )
    read = [f"{kind}.{layer}" for kind in ("q", "k", "attn_scores", "attn_probs") for layer in chosen]
    there = client.run(
        [pair.input(other) for pair in pairs],
        capture=[f"{kind}.{layer}" for kind in kinds for layer in chosen],
        model=model,
    )
    found = client.gradients(
        [item for pair in pairs for item in (pair.input(base), *pair.baselines)],
        [pair.target(base) for pair in pairs],
        at=[f"attn_probs.{layer}" for layer in chosen],
        capture=read,
        model=model,
    )
    out: dict[str, Attribution] = {}
    base_metric = NamedArray(
        np.array([float(found.inputs[pair.name(base)].metric) for pair in pairs]), {"pair": [p.index for p in pairs]}
    )
    for kind in kinds:
        scores = [
            [_one_layer(kind, layer, found.inputs[pair.name(base)], there.inputs[pair.name(other)]) for layer in chosen]
            for pair in pairs
        ]
        heads = range(n_heads(info, kind, chosen[0]))
        axes = {
            "pair": [pair.index for pair in pairs],
            "layer": chosen,
            "position": list(range(n_tokens)),
            "head": list(heads),
        }
        out[kind] = Attribution(
            NamedArray(np.array(scores), axes),
            direction,
            f"AtP with QK fix at {kind}",
            base_metric,
            pairs[0].tokens(base),
        )
    return out


def _one_layer(kind: str, layer: int, own: Any, there: Any) -> Floats:
    """[position, head] of one layer."""
    q, k, scores, probs = (
        np.asarray(own.captures[f"{name}.{layer}"], dtype=np.float64)
        for name in ("q", "k", "attn_scores", "attn_probs")
    )
    gradient = np.asarray(own.gradients[f"attn_probs.{layer}"], dtype=np.float64)
    change = np.asarray(there.captures[f"{kind}.{layer}"], dtype=np.float64) - (q if kind == "q" else k)
    group = q.shape[1] // k.shape[1]
    scale = attention_scale(q, np.repeat(k, group, axis=1), scores, layer)
    if kind == "q":
        shift = scale * np.einsum("qhd,khd->hqk", change, np.repeat(k, group, axis=1))
        moved = refocus(scores, probs, shift) - probs
        return np.einsum("hqk,hqk->qh", moved, gradient)
    shift = scale * np.einsum("qhd,khd->hqk", q, np.repeat(change, group, axis=1))
    out = np.zeros((len(k), k.shape[1]))
    for position in range(len(k)):  # a key of one position moves one column, for every query after it
        column = np.zeros_like(shift)
        column[:, :, position] = shift[:, :, position]
        moved = np.einsum("hqk,hqk->h", refocus(scores, probs, column) - probs, gradient)
        out[position] = moved.reshape(k.shape[1], group).sum(axis=1)
    return out


def refocus(scores: Floats, probs: Floats, shift: Floats) -> Floats:
    """[head, query, key]: the pattern once `shift` is added to the scores. A sink's share stays in the denominator."""
    allowed = np.isfinite(scores) & (scores > np.finfo(np.float32).min / 2)  # masked ones are −inf, or the least float
    top = np.where(allowed, scores, -np.inf).max(axis=-1, keepdims=True)
    weights = np.where(allowed, np.exp(np.where(allowed, scores - top, 0.0)), 0.0)
    total = weights.sum(axis=-1, keepdims=True)
    share = np.clip(probs.sum(axis=-1, keepdims=True), 1e-300, None)
    sink = total * (1.0 - share) / share
    sink = np.where(np.abs(1.0 - share) < 1e-5, 0.0, sink)  # rounding of a softmax without a sink
    shift = np.where(allowed, shift, -np.inf)
    highest = np.maximum(shift.max(axis=-1, keepdims=True), 0.0)
    moved = weights * np.exp(shift - highest)
    return moved / (moved.sum(axis=-1, keepdims=True) + sink * np.exp(-highest))


def attention_scale(q: Floats, k: Floats, scores: Floats, layer: int = 0) -> float:
    """What q · k is multiplied by; q and k are [pos, head, d_head], of as many heads.

    Found from the scores themselves, as it differs by family. Raises Unsupported where they are no multiple of q · k.
    """
    products = np.einsum("qhd,khd->hqk", q, k)
    allowed = np.isfinite(scores) & (scores > np.finfo(np.float32).min / 2)
    x, y = products[allowed], scores[allowed]
    scale = float(x @ y / (x @ x))
    error = np.abs(scale * x - y).max() / max(np.abs(y).max(), 1e-9)
    if error > 1e-3:
        raise Unsupported(
            f"layer {layer}: attention scores are no multiple of q · k (off by {error:.1e} of the largest), so this model "
            "caps or biases them; the QK fix would be wrong. Use attribution_patching at q and k"
        )
    return scale


def _check_patterns(info: ModelInfo) -> None:
    found = info.site("attn_probs")
    if found is None or not found.gradients:
        raise Unsupported(f"attn_probs offers no gradients on {info.backend}, and the QK fix needs them")


def grad_drop(
    client: Client,
    clean: Prompts,
    corrupt: Prompts,
    sites: str | Sequence[str],
    metric: Metric | Sequence[Metric],
    *,
    layers: Layers = None,
    positions: Positions = None,
    heads: Heads = None,
    direction: Direction = "denoise",
    model: str = "",
) -> Attribution:
    """Σ over layers ℓ of |AtP without the gradient through layer ℓ|, divided by n_layers − 1. Never negative.

    Layer ℓ is left out of a backward pass by putting its attn_out and mlp_out's own values in their place: the forward
    is the same, and no gradient goes into what was put in. `per_pair` is averaged like that of AtP, so |·| is a pair's.
    """
    base, other = check_direction(direction)
    pairs = make_pairs(client, clean, corrupt, metric, model=model)
    n_tokens = same_length(pairs, "a grid over every position") if positions is None else min(map(len, pairs))
    info = client.describe(model)
    grid = make_grid(info, sites, n_tokens, positions, heads, layers)
    check_gradients(info, grid.sites)
    read = patterns(grid.sites)
    run = client.run([pair.input(side) for pair in pairs for side in (base, other)], capture=read, model=model)
    scores: list[Floats] = []
    metrics: list[float] = []
    for pair in pairs:
        own, there = (run.inputs[pair.name(side)].captures for side in (base, other))
        change = {s: np.asarray(there[s], dtype=np.float64) - own[s] for s in grid.sites}
        dropped = _dropped(client, pair, base, read, info, model)
        parts = [
            np.abs(
                score_rows((change[s] * _outside(one.gradients[s], s, layer) for s in grid.sites), grid, units=False)
            )
            for layer, one in enumerate(dropped)
        ]
        scores.append(np.sum(parts, axis=0) / max(info.n_layers - 1, 1))
        metrics.append(float(dropped[0].metric))
    labels = {"pair": [pair.index for pair in pairs]}
    return Attribution(
        NamedArray(np.stack(scores), {**labels, **grid.axes}),
        direction,
        "AtP with GradDrop",
        NamedArray(np.array(metrics), labels),
        pairs[0].tokens(base),
    )


def _outside(gradient: NDArray[Any], site: str, layer: int) -> NDArray[Any]:
    """A gradient is of what was put in; the layer's own outputs, which it stands for, get none."""
    return gradient * (site not in (f"attn_out.{layer}", f"mlp_out.{layer}"))


def _dropped(client: Client, pair: Pair, base: Side, at: Sequence[str], info: ModelInfo, model: str) -> list[Any]:
    """For each layer, the gradients at `at` of a backward pass that does not enter the layer."""
    own, sources = pair.name(base), [pair.input(base, source_only=True), *pair.baselines]
    found: list[Any] = []
    room = MAX_INPUTS - len(sources)
    for start in range(0, info.n_layers, room):
        layers = range(start, min(start + room, info.n_layers))
        names = {layer: f"without layer {layer}" for layer in layers}
        inputs = [*sources, *(Input(token_ids=pair.ids(base), name=name) for name in names.values())]
        hooks = [
            patch_hook(f"{kind}.{layer}", from_input=own, inputs=name)
            for layer, name in names.items()
            for kind in ("attn_out", "mlp_out")
        ]
        targets = [Target(pair.metric, (name,)) for name in names.values()]
        result = client.gradients(inputs, targets, at=at, hooks=hooks, model=model)
        found += [result.inputs[name] for name in names.values()]
    return found
