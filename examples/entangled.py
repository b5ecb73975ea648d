"""Neurons of several domains: which fire in mathematics, code, prose and talk alike, and how many only for a word.

The count is made beside what could fake it: words that domains share, domains dealt anew to the texts, and neurons that
fire on everything. For two neurons, whether the loss of the domains rises without them.

    python examples/entangled.py [--url grpc://host:50051]
"""

from __future__ import annotations

from pathlib import Path

from serving import arguments, connected

from probewire.analysis.features import (
    causal_check,
    collect_rows,
    domain_texts,
    entangled_units,
    entanglement_page,
    similar_across,
)
from probewire.analysis.features.entanglement_figures import causal_figure, entanglement_figure

OUTPUT = Path(__file__).parent / "output"
SITE, TOKENS, TRIED = "mlp_act.20", 4000, 2


def main() -> None:
    """Collect, count, ablate two, write the page."""
    args = arguments(__doc__)
    OUTPUT.mkdir(exist_ok=True)
    with connected(args.url) as client:
        rows = collect_rows(client, domain_texts(30), SITE, max_tokens=TOKENS, progress=False, model=args.model)
        found = entangled_units(rows, replicates=60, permuted=2)
        units = (found.entangled_without_words or found.entangled or found.broad)[:TRIED]
        found = causal_check(client, found, rows, units=units, windows=1, model=args.model)
    print(found)
    for unit, losses in found.losses.items():
        print(f"#{unit}, deviations above matched neurons: " + ", ".join(f"{d} {z:+.1f}" for d, z in losses.items()))
    if units:
        for domain, near in similar_across(rows, units[0], n=1).items():
            print(f"nearest in {domain} to where #{units[0]} is strongest: {near[0][0]:.2f} {near[0][1]!r}")
    entanglement_page(found, OUTPUT / "entangled.html")
    entanglement_figure(found, OUTPUT / "entangled.png")
    causal_figure(found, OUTPUT / "entangled_losses.png")
    for name in ("entangled.html", "entangled.png", "entangled_losses.png"):
        print(f"wrote {OUTPUT / name}")


if __name__ == "__main__":
    main()
