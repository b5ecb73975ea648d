"""RelP: relevance by gradients of a linearised backward pass, at any sites and at neurons.

Source: Jafari et al. 2025 (RelP), after LRP (Achtibat et al. 2024). Rules are in protos/gradients.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...clients import Client, NamedArray
from ...clients.requests.prompts import Prompts, to_inputs
from ...protos.errors import InvalidArgument
from ...protos.metrics import Metric, Target
from .attribution_patching import attribution_patching
from .grid import Heads, Layers, Positions, make_grid
from .pairs import Direction
from .taylor import Attribution, check_gradients, patterns, score_rows

__all__ = ["GRAPH_RULES", "PATCHING_RULES", "Relevance", "relp", "relp_patching"]

PATCHING_RULES = ("ln", "identity", "half")
"""What estimates patching best: attention patterns keep their gradient."""
GRAPH_RULES = (*PATCHING_RULES, "ah")
"""What conserves: relevance of all embeddings sums to the metric (without biases)."""


@dataclass(frozen=True, slots=True, eq=False)
class Relevance:
    """a · ∂m/∂a of each cell, of prompts on their own."""

    per_prompt: NamedArray
    """[prompt, site?, layer?, position?, head? or unit?], in the metric's unit."""
    metric: NamedArray
    """[prompt]"""
    rules: tuple[str, ...]
    tokens: tuple[str, ...]
    """Of the first prompt."""

    @property
    def mean(self) -> NamedArray:
        """Over prompts."""
        return self.per_prompt.mean("prompt")


def relp(
    client: Client,
    prompts: Prompts,
    sites: str | Sequence[str],
    metric: Metric | Sequence[Metric],
    *,
    rules: Sequence[str] = GRAPH_RULES,
    layers: Layers = None,
    positions: Positions = None,
    heads: Heads = None,
    units: bool = False,
    model: str = "",
) -> Relevance:
    """What each cell says to the metric, without a second prompt. Several prompts need one length, or `positions`.

    `units`: each coordinate on its own; relp(…, "mlp_act", …, units=True) scores neurons. `metric`: one for all, or one
    a prompt. Raises InvalidArgument for sites that offer no gradients.
    """
    inputs = to_inputs(prompts)
    metrics = list(metric) if isinstance(metric, Sequence) else [metric] * len(inputs)
    if len(metrics) != len(inputs):
        raise InvalidArgument(f"{len(metrics)} metrics for {len(inputs)} prompts; give one for all, or one a prompt")
    found = [client.tokenize(item, model=model) for item in inputs]
    lengths = sorted({len(item.token_ids) for item in found})
    if len(lengths) > 1 and positions is None:
        raise InvalidArgument(
            f"the prompts have {', '.join(map(str, lengths))} tokens; a grid over every position needs one length: call "
            'once a length, or give positions (negative ones count from the end, "all" takes them together)'
        )
    info = client.describe(model)
    grid = make_grid(info, sites, lengths[0], positions, heads, layers)
    check_gradients(info, grid.sites)
    names = patterns(grid.sites)
    result = client.gradients(
        inputs,
        [Target(m, (item.name,)) for m, item in zip(metrics, inputs, strict=True)],
        at=names,
        capture=names,
        rules=tuple(rules),
        model=model,
    )
    scores = [
        score_rows(
            (np.asarray(one.captures[site], dtype=np.float64) * one.gradients[site] for site in grid.sites),
            grid,
            units=units,
        )
        for one in (result.inputs[item.name] for item in inputs)
    ]
    labels = {"prompt": list(range(len(inputs)))}
    axes = {**labels, **grid.axes, **({"unit": list(range(scores[0].shape[-1]))} if units else {})}
    measured = np.array([float(result.inputs[item.name].metric) for item in inputs])
    return Relevance(NamedArray(np.stack(scores), axes), NamedArray(measured, labels), tuple(rules), found[0].tokens)


def relp_patching(
    client: Client,
    clean: Prompts,
    corrupt: Prompts,
    sites: str | Sequence[str],
    metric: Metric | Sequence[Metric],
    *,
    rules: Sequence[str] = PATCHING_RULES,
    layers: Layers = None,
    positions: Positions = None,
    heads: Heads = None,
    units: bool = False,
    direction: Direction = "denoise",
    model: str = "",
) -> Attribution:
    """(a_clean − a_corrupt) · ∂m/∂a at the corrupt prompt ("denoise"), or mirrored ("noise"): estimates `patch(…).effect`.

    As `attribution_patching`, with the rules in the backward pass.
    """
    return attribution_patching(
        client,
        clean,
        corrupt,
        sites,
        metric,
        positions=positions,
        heads=heads,
        units=units,
        direction=direction,
        rules=tuple(rules),
        model=model,
    )
