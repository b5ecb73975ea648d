"""A circuit kept: found, put into a library, found again by words, exported, and a model made of it alone.

The library is a folder below examples/output. The checks of `probewire circuit qa` are more, and take some minutes.

    python examples/circuit_library.py [--url grpc://host:50051]
"""

from __future__ import annotations

import shutil
from pathlib import Path

from serving import arguments, connected

from probewire.analysis.circuits import (
    Circuit,
    Claim,
    Origin,
    ablated,
    circuit_weights,
    head_space,
    install,
    judge,
    rank_units,
)
from probewire.analysis.library import CircuitLibrary
from probewire.analysis.reports.circuit import task_card
from probewire.analysis.tasks import fit, ioi

OUTPUT = Path(__file__).parent / "output"


def main() -> None:
    """Fifteen heads, from attribution to a page."""
    args = arguments(__doc__)
    OUTPUT.mkdir(exist_ok=True)
    shutil.rmtree(OUTPUT / "circuits", ignore_errors=True)
    with connected(args.url) as client:
        info = client.describe(args.model)
        task = fit(ioi().where(template="0"), client, 4, model=args.model)
        prompts = (task.clean, task.corrupt, task.metrics)
        space = head_space(info)
        scores = rank_units(client, *prompts, space, model=args.model)
        origin = Origin(model=info.id, model_hash=info.model_hash, task="ioi", metric="logit difference", method="AtP")
        model = ablated(client, *prompts, space, progress=False, model=args.model)
        circuit = judge(model, Circuit.of(space, space.top(scores, 15), scores, origin))
        best = circuit.units[0].name
        circuit = circuit.with_card(
            name="ioi-heads",
            category="syntax/names",
            description="Heads that keep who gets the drink",
            task=task_card(task),
            claims=(Claim(best, "the rest does not do without it", "necessity", 0.3),),
        )
        print(circuit, circuit.id, sep="\n")
        library = CircuitLibrary(OUTPUT / "circuits")
        library.add(circuit)
        print(library.search("who gets the drink")[0])
        print(library.search(contains=best)[0])
        graph = library.export("ioi-heads", OUTPUT / "ioi_graph.json", kind="eap-ig", info=info)
        print(f"for EAP-IG: {graph}, {graph.stat().st_size / 1e6:.1f} MB")
        owned = circuit_weights(client, circuit, model=args.model)
        print(owned, *owned.notes, sep="\n")
        alone = install(client, circuit, reference=task.corrupt, name="ioi-heads", model=args.model)
        print(f"{alone}: all other heads at their mean")
    library.index(OUTPUT / "circuits.html")
    print(f"page: {OUTPUT / 'circuits.html'}")


if __name__ == "__main__":
    main()
