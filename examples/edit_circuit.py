"""The weights of a circuit edited: heads and neurons that hold occupations apart by pronoun, scaled down, and what that costs.

Beside the circuit a random one of the same size a site: an edit that does no more than that did nothing by being where it
is. What must stay is that a king is he and a queen she.

    python examples/edit_circuit.py [--url grpc://host:50051]
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from serving import arguments, connected

from probewire.analysis.circuits import Circuit, random_masks
from probewire.analysis.datasets import load_set
from probewire.analysis.editing.circuit import Scale, edit_circuit, find_bias_circuit, score_bias
from probewire.analysis.reports.at_ends import kl_at_end
from probewire.clients import use

PAIRS, FACTOR = 4, 0.25


def main() -> None:
    """Find, edit, load beside the base, measure on held-out words, unload."""
    args = arguments(__doc__)
    general = [item["text"] for item in load_set("general").data["texts"]][::4]
    with connected(args.url) as client:
        circuit = find_bias_circuit(client, n=PAIRS, model=args.model)
        print(circuit, ", ".join(unit.name for unit in circuit.units[:8]), "…")
        base = score_bias(client, model=args.model)[0]
        print(f"{'as it is':<18} {base}")
        found: dict[str, tuple[float, float]] = {}
        for name, one in {"the circuit": circuit, "a random circuit": chance(circuit)}.items():
            edited = edit_circuit(client, one, Scale(FACTOR), name=name.replace(" ", "-"), model=args.model)
            info = client.load_variant(edited.variant, name="edited-circuit", model=args.model)
            uses = (use("edited-circuit"),)
            scores = score_bias(client, variants=uses, model=args.model)[0]
            kl = kl_at_end(client, general, variants=uses, model=args.model)
            size = max(edited.relative_norms.values())
            print(
                f"{name:<18} {scores}; KL elsewhere {kl.mean():.4f}; {len(edited.variant.deltas)} weights, ‖Δ‖/‖W‖ ≤ {size:.2f}"
            )
            client.unload_variant(info.name, model=args.model)
            down, gap = 1 - scores.deviation / base.deviation, 1 - scores.gap / base.gap
            found[name] = (down, gap)
            print(f"{'':<18} deviation of occupations down {down:.0%}, gap of defining words down {gap:.0%}")
    (down, gap), (by_chance, _) = found.values()
    reached = down >= 0.25 and gap <= 0.1 and down > by_chance
    print(f"bias down by a quarter, gap by a tenth at most, and more than by chance: {'yes' if reached else 'no'}")


def chance(circuit: Circuit) -> Circuit:
    """As many units at each site, drawn at random."""
    [mask] = random_masks(circuit.space, circuit.mask, n=1, seed=0)
    return replace(Circuit.of(circuit.space, mask, np.zeros(circuit.space.shape)), origin=circuit.origin)


if __name__ == "__main__":
    main()
