"""What a circuit costs: units, hooks, and how much slower the model is with everything else replaced."""

from __future__ import annotations

import time
from typing import Any

from ....clients import Zeros
from ....protos.errors import InvalidArgument
from ...circuits.ablated import ablation_hooks
from .bench import Bench

__all__ = ["performance"]

TIMES = 3


def performance(bench: Bench) -> dict[str, Any]:
    """Facts without a bound: they say what a machine did, not whether a circuit is good."""
    circuit = bench.circuit
    found: dict[str, Any] = {
        "units": len(circuit),
        "of": circuit.space.size,
        "share": len(circuit) / circuit.space.size,
        "edges": len(circuit.edges),
    }
    if circuit.edges:
        size = bench.space.size
        why = "edges take a run of the model a node: no hooks of one forward say them"
        return {
            **found,
            "units": len(circuit.edges),
            "of": size,
            "share": len(circuit.edges) / size,
            "hooks": None,
            "why": why,
        }
    try:
        hooks = ablation_hooks(circuit.space, circuit.mask, Zeros())
    except InvalidArgument as error:
        return {**found, "hooks": None, "why": error.message}
    inputs = list(bench.held_out.task.clean.values())[:8]

    def seconds(some: list[Any]) -> float:
        start = time.perf_counter()
        bench.client.run(inputs, hooks=some, capture=[], model=bench.model)
        return time.perf_counter() - start

    for some in ([], hooks):
        seconds(some)  # the first is slower
    turns = [(seconds([]), seconds(hooks)) for _ in range(TIMES)]  # in turns: others use the machine too
    plain, replaced = (min(times) for times in zip(*turns, strict=True))
    return {**found, "hooks": len(hooks), "speed": plain / replaced}
