"""Patching without patching: attribution patching, its repairs, RelP, and edges, each held against the real thing.

One backward pass estimates every patch at once. How well, is the question: gradients of the plain model go wrong where it is
far from linear, RelP's rules straighten the backward pass. The table is Pearson's r with true patching on this prompt; then
edge attribution names the strongest direct connections, and path patching checks them.

    python examples/attribution.py [--url grpc://host:50051]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from serving import arguments, connected

from probewire.analysis.attribution import (
    GRAPH_RULES,
    Attribution,
    Patching,
    attribution_patching,
    edge_attribution,
    grad_drop,
    patch,
    path_patching,
    relp_patching,
)
from probewire.analysis.plots import heat_map
from probewire.clients import Client, LogitDifference

OUTPUT = Path(__file__).parent / "output"
CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPT = "When Mary and John went to the store, Mary gave a drink to"
KINDS = ("attn_out", "mlp_out")


def main() -> None:
    """Estimates against patching, then edges against path patching."""
    args = arguments(__doc__)
    OUTPUT.mkdir(exist_ok=True)
    with connected(args.url) as client:
        model = client.describe(args.model).id
        metric = LogitDifference((client.token(" Mary", model=model),), (client.token(" John", model=model),))
        nodes(client, metric, model)
        edges(client, metric, model)
    print(f"\nplot: {OUTPUT / 'attribution.png'}")


def nodes(client: Client, metric: LogitDifference, model: str) -> None:
    """Every layer and position of attention and MLP outputs, estimated five ways and patched for real."""
    exact = patch(client, CLEAN, CORRUPT, KINDS, metric, model=model)
    where = (client, CLEAN, CORRUPT, KINDS, metric)
    estimates: dict[str, Attribution] = {
        "AtP": attribution_patching(*where, model=model),
        "AtP, integrated over 5 steps": attribution_patching(*where, steps=5, model=model),
        "AtP with GradDrop": grad_drop(*where, model=model),
        "RelP": relp_patching(*where, model=model),
        "RelP with constant attention": relp_patching(*where, rules=GRAPH_RULES, model=model),
    }
    print(f"Pearson's r with true patching, {exact.effect.values.size} patches:")
    print(f"  {'':<32}{KINDS[0]:>10}{KINDS[1]:>10}")
    for name, estimate in estimates.items():
        print(f"  {name:<32}" + "".join(f"{correlation(estimate, exact, kind):>10.3f}" for kind in KINDS))
    heat_map(
        estimates["RelP"].effect.sel(site="mlp_out"),
        exact.tokens,
        what="What each MLP would do to the answer, from one backward pass",
        how=f"{model}: RelP estimate of patching mlp_out, clean in corrupt",
        label="change of the logit difference",
        path=OUTPUT / "attribution.png",
    )


def correlation(estimate: Attribution, exact: Patching, kind: str) -> float:
    """Pearson's r. GradDrop gives magnitudes, so those are what it is compared with."""
    one, other = (found.effect.sel(site=kind).values.ravel() for found in (estimate, exact))
    return float(np.corrcoef(one, np.abs(other) if "GradDrop" in estimate.method else other)[0, 1])


def edges(client: Client, metric: LogitDifference, model: str) -> None:
    """The strongest edges by EAP-IG, each then path-patched."""
    found = edge_attribution(client, CLEAN, CORRUPT, metric, steps=5, model=model).effect
    print("\nstrongest edges by EAP-IG, and what path patching says:")
    for index in np.argsort(-np.abs(found.values), axis=None)[:6].tolist():
        s, r = divmod(index, found.shape[1])
        sender, receiver = found.axes["sender"][s], found.axes["receiver"][r]
        true = path_patching(client, CLEAN, CORRUPT, [sender], [receiver], metric, progress=False, model=model)
        print(f"  {sender:>11} → {receiver:<13} {found.values[s, r]:+6.2f}   {true.effect.item():+6.2f}")


if __name__ == "__main__":
    main()
