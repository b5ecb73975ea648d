"""Attribution patching (AtP): every activation patch estimated from one backward pass.

Sources: Nanda 2023; Syed et al. 2023; Kramár et al. 2024 (AtP*, whose corrections are in atp_star.py). Integrated:
Hanna et al. 2024 (EAP-IG), after Sundararajan et al. 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...clients import Client
from ...clients.requests.prompts import Prompts
from ...protos.metrics import Metric
from .grid import Heads, Layers, Positions, make_grid
from .pairs import Direction, make_pairs, same_length
from .taylor import Attribution, Backward, paired_scores

__all__ = ["attribution_patching"]


def attribution_patching(
    client: Client,
    clean: Prompts,
    corrupt: Prompts,
    sites: str | Sequence[str],
    metric: Metric | Sequence[Metric],
    *,
    layers: Layers = None,
    positions: Positions = None,
    heads: Heads = None,
    units: bool = False,
    direction: Direction = "denoise",
    steps: int = 0,
    path_site: str = "embed",
    rules: tuple[str, ...] = (),
    model: str = "",
) -> Attribution:
    """(z_other − z_own) · ∂m/∂z_own at every cell: the first-order estimate of `patch(…).effect`.

    Arguments as for `patch`. `units`: each coordinate of the last axis on its own (neurons, at mlp_act). `steps` > 0:
    the gradient is averaged over the line from the other prompt's value at `path_site` to the own one (own end left
    out): integrated. `rules` change the backward pass (relp.py). Raises InvalidArgument for prompts that do not pair
    and for sites that offer no gradients.
    """
    pairs = make_pairs(client, clean, corrupt, metric, model=model)
    n_tokens = same_length(pairs, "a grid over every position") if positions is None else min(map(len, pairs))
    grid = make_grid(client.describe(model), sites, n_tokens, positions, heads, layers)
    method = "AtP" + (f" integrated over {steps} steps at {path_site}" if steps else "")
    if rules:
        method = f"RelP ({', '.join(rules)})" + method.removeprefix("AtP")
    backward = Backward(rules, steps, path_site)
    return paired_scores(client, pairs, grid, direction, backward, units=units, method=method, model=model)
