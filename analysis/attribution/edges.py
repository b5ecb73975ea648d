"""Edge attribution patching: every edge of the coarse graph estimated from one backward pass.

Sources: Syed et al. 2023 (EAP), Hanna et al. 2024 (EAP-IG). Senders are the embedding, each layer's attention (or each
of its heads) and each MLP; receivers are the branches' inputs attn_resid.L and mlp_resid.L, and the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...clients import Captures, Client, Input, NamedArray
from ...clients.requests.prompts import Prompts
from ...protos.gradients import IntegratedPath
from ...protos.metrics import Metric
from ...protos.model import ModelInfo
from ...protos.sites import Site
from .head_outputs import check_head_outputs, head_weights
from .pairs import Direction, Pair, Side, check_direction, make_pairs
from .taylor import check_gradients, patterns

__all__ = ["EdgeScores", "edge_attribution", "edge_mask", "receiver_sites", "sender_sites"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class EdgeScores:
    """An estimate, for each edge, of how the metric changes when it alone is patched (`path_patching`)."""

    per_pair: NamedArray
    """[pair, sender, receiver], in the metric's unit; 0 where the receiver comes before the sender."""
    exists: NamedArray
    """[sender, receiver]: whether there is an edge."""
    direction: Direction
    method: str

    @property
    def effect(self) -> NamedArray:
        """Mean over pairs."""
        return self.per_pair.mean("pair")

    @property
    def importance(self) -> NamedArray:
        """The effect with the sign that says how much an edge helps the clean answer: what circuits are ranked by."""
        effect = self.effect
        return effect if self.direction == "denoise" else NamedArray(-effect.values, effect.axes)


def edge_attribution(
    client: Client,
    clean: Prompts,
    corrupt: Prompts,
    metric: Metric | Sequence[Metric],
    *,
    heads: bool = False,
    steps: int = 0,
    rules: Sequence[str] = (),
    direction: Direction = "noise",
    model: str = "",
) -> EdgeScores:
    """(z_u of the other prompt − own) · ∂m/∂(input of v), summed over positions, for all edges u → v at once.

    `steps` > 0 is EAP-IG (inputs): gradients averaged over the line between the embeddings, own end left out; MIB takes
    5. `heads`: each attention head is a sender of its own. `rules` as for RelP. Raises InvalidArgument for prompts that
    do not pair, Unsupported for heads where a norm follows the attention's projection.
    """
    base, other = check_direction(direction)
    pairs = make_pairs(client, clean, corrupt, metric, model=model)
    info = client.describe(model)
    whole, receivers = sender_sites(info), receiver_sites(info)
    check_gradients(info, receivers)
    read = [*whole, *(f"z.{layer}" for layer in range(info.n_layers) if heads)]
    weights = [head_weights(client, info, layer, model=model) for layer in range(info.n_layers)] if heads else None
    sides = (base, other) if steps else (other,)  # a path's forwards are not the prompt's own
    run = client.run([pair.input(side) for pair in pairs for side in sides], capture=patterns(read), model=model)
    scores: list[Floats] = []
    names: list[str] = []
    for some in [list(pairs)] if not steps else [[pair] for pair in pairs]:
        found = client.gradients(
            [item for pair in some for item in _inputs(pair, base, other, steps)],
            [pair.target(base) for pair in some],
            at=patterns(receivers),
            capture=() if steps else patterns(read),
            rules=tuple(rules),
            path=IntegratedPath(some[0].name(other), steps) if steps else None,
            model=model,
        )
        for pair in some:
            own, there = found.inputs[pair.name(base)], run.inputs[pair.name(other)].captures
            here = run.inputs[pair.name(base)].captures if steps else own.captures
            names, change = _changes(here, there, whole, weights)
            gradients = np.stack([np.asarray(own.gradients[site], dtype=np.float64).ravel() for site in receivers])
            scores.append(change @ gradients.T)
    exists = edge_mask(names, receivers)
    labels = {"sender": names, "receiver": [*receivers[:-1], "logits"]}
    values = np.stack(scores) * exists
    method = ("EAP-IG" if steps else "EAP") + (f" with {', '.join(rules)}" if rules else "")
    axes: dict[str, Any] = {"pair": [pair.index for pair in pairs], **labels}
    return EdgeScores(NamedArray(values, axes), NamedArray(exists, labels), direction, method)


def _inputs(pair: Pair, base: Side, other: Side, steps: int) -> list[Input]:
    return [pair.input(base), *pair.baselines, *([pair.input(other, source_only=True)] if steps else [])]


def sender_sites(info: ModelInfo) -> list[str]:
    """embed, attn_out and mlp_out of each layer, in forward order."""
    return ["embed", *(f"{kind}.{layer}" for layer in range(info.n_layers) for kind in ("attn_out", "mlp_out"))]


def receiver_sites(info: ModelInfo) -> list[str]:
    """attn_resid and mlp_resid of each layer in forward order, then the last residual stream, which the logits read."""
    branches = [f"{kind}.{layer}" for layer in range(info.n_layers) for kind in ("attn_resid", "mlp_resid")]
    return [*branches, f"resid_post.{info.n_layers - 1}"]


def edge_mask(senders: Sequence[str], receivers: Sequence[str]) -> NDArray[np.bool_]:
    """[sender, receiver]: whether the sender's output is part of what the receiver reads."""
    sent, taken = ([Site.parse(name.partition(" ")[0]).order for name in names] for names in (senders, receivers))
    return np.array([[s is not None and t is not None and s < t for t in taken] for s in sent])


def _changes(
    own: Captures, there: Captures, whole: Sequence[str], weights: Sequence[Floats] | None
) -> tuple[list[str], Floats]:
    """Names of the senders and the change of each one's output, [sender, pos · d_model]."""
    names: list[str] = []
    rows: list[Floats] = []
    for site in whole:
        delta = np.asarray(there[site], dtype=np.float64) - own[site]
        layer = Site.parse(site).layer
        if weights is None or layer is None or not site.startswith("attn_out"):
            names.append(site)
            rows.append(delta.ravel())
            continue
        mine, others = (np.asarray(found[f"z.{layer}"], dtype=np.float64) for found in (own, there))
        heads = np.einsum("phd,hdm->phm", mine, weights[layer])
        check_head_outputs(heads, np.asarray(own[site], dtype=np.float64), layer)
        parts = np.einsum("phd,hdm->hpm", others - mine, weights[layer])
        names += [f"z.{layer} head {head}" for head in range(len(parts))]
        rows += [part.ravel() for part in parts]
    return names, np.stack(rows)
