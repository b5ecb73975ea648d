"""Where an SAE is spliced into a model: everywhere, past the first token, or past massive activations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ....clients import Client, Hook, Input, capture, hook
from ....protos.edits import Edit
from ....protos.errors import InvalidArgument
from ....protos.model import MAX_INPUTS
from .scores import MASSIVE

__all__ = ["SPARES", "Spare", "Splice", "batched", "splice"]

Spare = Literal["none", "first", "massive"]
"""Positions that keep the model's own activation: none, each context's first token, or those of massive activations."""
SPARES: tuple[Spare, ...] = get_args(Spare)

_REASONS: dict[Spare, str] = {
    "none": "every position",
    "first": "every position but each context's first",
    "massive": f"every position whose norm is at most {MASSIVE:g} times the median",
}


@dataclass(frozen=True, slots=True, eq=False)
class Splice:
    """The positions of each context at which an SAE takes the model's place."""

    spare: Spare
    positions: Mapping[str, tuple[int, ...]]
    """Input → positions that are spliced."""
    n_spared: int
    n_positions: int
    """Of all contexts."""

    @property
    def rule(self) -> str:
        """In words."""
        return f"spliced in at {_REASONS[self.spare]} ({self.n_spared} of {self.n_positions} positions spared)"

    def hooks(self, site: str, edit: Edit, inputs: Sequence[Input]) -> list[Hook]:
        """The edit at the spliced positions of these inputs."""
        if self.spare == "none":
            return [hook(site, edit)]
        if self.spare == "first":
            return [hook(site, edit, spans=[(1, None)])]
        chosen = ((item.name, self.positions[item.name]) for item in inputs)
        return [hook(site, edit, positions=positions, inputs=name) for name, positions in chosen if positions]


def splice(client: Client, inputs: Sequence[Input], site: str, spare: Spare, *, model: str = "") -> Splice:
    """Where to splice. "massive" reads the norms at the site first. Raises InvalidArgument for another `spare`."""
    if spare not in SPARES:
        raise InvalidArgument(f"spare {spare!r}; allowed: {', '.join(SPARES)}")
    lengths = {item.name: len(item.token_ids or ()) for item in inputs}
    if spare != "massive":
        first = int(spare == "first")
        positions = {name: tuple(range(first, length)) for name, length in lengths.items()}
        return Splice(spare, positions, first * len(lengths), sum(lengths.values()))
    norms: dict[str, NDArray[np.float32]] = {}
    for some in batched(inputs):
        run = client.run(some, capture=[capture(site, reduce="norm")], model=model)
        norms |= {item.name: np.asarray(run.inputs[item.name][site], dtype=np.float32).reshape(-1) for item in some}
    median = float(np.median(np.concatenate(list(norms.values()))))
    usual = {name: tuple(np.flatnonzero(found <= MASSIVE * median).tolist()) for name, found in norms.items()}
    n_positions = sum(lengths.values())
    return Splice(spare, usual, n_positions - sum(map(len, usual.values())), n_positions)


def batched(inputs: Sequence[Input], size: int = MAX_INPUTS) -> Iterator[list[Input]]:
    """Inputs, so many a request."""
    if not 1 <= size <= MAX_INPUTS:
        raise InvalidArgument(f"a request takes 1 to {MAX_INPUTS} inputs, got {size}")
    for start in range(0, len(inputs), size):
        yield list(inputs[start : start + size])
