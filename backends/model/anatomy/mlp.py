"""A layer's MLP: the module, its branches and what it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ..sites import Tap
from .block import Block, read_by
from .trace import Trace

__all__ = ["find_mlp"]


def find_mlp(trace: Trace, block: Block, path: str, stream: Any, activations: Mapping[str, Any]) -> None:
    made = trace.get(path, "output")
    given = [path, *trace.places(made, "output")]
    behind = trace.get(path, "input") if path in trace.norms else None
    if behind is not None:  # a norm behind the MLP
        given += list(trace.places(behind, "output"))
    whole = [one for one in given if one.startswith(f"{block.base}.") and one not in trace.leaves | trace.norms]
    if not whole and path in trace.linear:  # the layer holds the MLP's modules itself
        acted = trace.get(path, "input")
        _branches(trace, block, block.base, path, acted, activations)
        if "mlp_gate" in block.taps:
            read_by(trace, block, ("mlp_resid", "mlp_in"), f"{block.base}.{block.taps['mlp_gate'].path}", stream)
        return
    if not whole:
        block.why["mlp_in"] = block.why["mlp_act"] = "no one module is the MLP"
        return
    mlp = min(whole, key=len)
    read_by(trace, block, ("mlp_resid", "mlp_in"), mlp, stream)
    block.mlp = mlp[len(block.base) + 1 :]
    target = trace.get(mlp, "output")
    down = [p for p in trace.linear if p.startswith(f"{mlp}.") and trace.equal(trace.get(p, "output"), target)]
    if not down or trace.get(down[0], "input") is None:
        block.why["mlp_act"] = "the MLP's output is not one linear module's: a mixture of experts, or another make"
        return
    acted = trace.get(down[0], "input")
    if acted.ndim != 3:
        block.why["mlp_act"] = "the MLP's rows are not the tokens'"
        return
    _branches(trace, block, mlp, down[0], acted, activations)


def _branches(
    trace: Trace, block: Block, mlp: str, down: str, acted: Any, activations: Mapping[str, Callable[[Any], Any]]
) -> None:
    """gate and up: mlp_act = act(gate) · up, or act(gate) where there is one branch."""
    cut = len(block.base) + 1
    block.taps["mlp_act"], block.d_mlp = Tap(down[cut:], "input"), acted.shape[-1]
    wide = sorted(
        (
            (path, value)
            for (path, side), value in trace.values.items()
            if side == "output" and path.startswith(f"{mlp}.") and path in trace.leaves and path != down
        ),
        # The first that fits: an activation's own output is a function of itself too (relu of relu squared).
        key=lambda found: trace.order[found[0], "output"],
    )
    for found in wide:
        fitting = [
            (error, name, taps)
            for name, act in activations.items()
            for error, taps in _branches_at(trace, cut, found, wide, acted, act)
        ]
        if fitting:  # in few bits more than one may fit
            _, block.activation, taps = min(fitting, key=lambda one: one[0])
            block.taps |= taps
            return
    block.why["mlp_gate"] = "mlp_act is no known function of what modules give"


def _branches_at(
    trace: Trace,
    cut: int,
    found: tuple[str, Any],
    wide: Sequence[tuple[str, Any]],
    acted: Any,
    act: Callable[[Any], Any],
) -> Iterator[tuple[float, dict[str, Tap]]]:
    """How far mlp_act is from what it would be if this module gave the gate, or held it, and the sites then; only what fits."""
    path, value = found
    if value.shape == acted.shape:
        gate, gated = act(value), {"mlp_gate": Tap(path[cut:], "output", linear=path in trace.linear)}
        alone = trace.distance(gate, acted)
        if alone <= trace.numbers.tolerance:
            yield alone, gated
            return
        for other, factor in wide:
            if other == path or factor.shape != acted.shape:
                continue
            if (error := trace.distance(gate * factor, acted)) <= trace.numbers.tolerance:
                yield error, gated | {"mlp_up": Tap(other[cut:], "output", linear=other in trace.linear)}
                return
    if value.shape[:-1] == acted.shape[:-1] and value.shape[-1] == 2 * acted.shape[-1]:
        halves = value[..., : acted.shape[-1]], value[..., acted.shape[-1] :]
        for first, second in ((0, 1), (1, 0)):
            error = trace.distance(act(halves[first]) * halves[second], acted)
            if error <= trace.numbers.tolerance:
                parts = {"mlp_gate": (first, 2), "mlp_up": (second, 2)}
                yield error, {name: Tap(path[cut:], "output", part=part) for name, part in parts.items()}
