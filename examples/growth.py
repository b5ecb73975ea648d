"""How large a circuit is, and whether it grows with the model: one task, ranking, ablation and target for all models of a server.

One model gives a row, two a difference, three a slope with its interval: serve some sizes of a family to see it. Beside it,
how much the circuits of two tasks share in one model.

    python examples/growth.py [--url grpc://host:50051]
"""

from __future__ import annotations

import numpy as np
from plots import save
from serving import arguments, connected

from probewire.analysis.circuits import Growth, growth
from probewire.analysis.plots.style import BLUE, GREY, new, title
from probewire.analysis.tasks import Task, ioi

PROMPTS, SETS = 4, 2


def main() -> None:
    """Measure every model, draw its circuits' sizes."""
    args = arguments(__doc__)
    with connected(args.url) as client:
        names = [args.model] if args.model else [one.id for one in client.models()]
        found = growth({name: (client, name) for name in names}, task(), n=PROMPTS, seeds=SETS, areas=False)
    print(found)
    for one in found.models:
        if one.circuits:
            print(f"  {one.name}: by fifths of the depth {list(one.depths)}; best {one.circuits[0].units[0].name}")
    if len(found.models) < 3:
        print("fewer than three models: how circuits grow is not said by this run")
    plot(found)


def task() -> Task:
    """Who gets the drink, in one template, so that all prompts are of a length."""
    return ioi().where(template="0")


def plot(found: Growth) -> None:
    """Heads of each set of prompts against parameters, the mean as a line."""
    figure, axes = new(6.4, 4.0)
    able = [one for one in found.models if one.circuits]
    for one in able:
        axes.plot([one.parameters] * len(one.sizes), one.sizes, "o", color=BLUE, zorder=3)
        axes.annotate(one.name, (one.parameters, max(one.sizes)), (0, 8), textcoords="offset points", ha="center")
    axes.plot([one.parameters for one in able], [np.mean(one.sizes) for one in able], color=GREY)
    axes.set(
        xscale="log",
        ylim=(0, 1.25 * max((size for one in able for size in one.sizes), default=1)),
        xlabel="parameters",
        ylabel="heads",
    )
    title(
        axes,
        "The fewest heads that keep the answer",
        f"a dot a set of {PROMPTS} prompts; faithfulness ≥ {found.target:g} under {found.ablation}, ranked by {found.rank}",
    )
    save(figure, "growth")


if __name__ == "__main__":
    main()
