"""Batches of two corpora, so many rows of each, with a label a row that added losses read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Self

from ....protos.errors import FailedPrecondition, InvalidArgument
from ..data.batches import Batches

if TYPE_CHECKING:
    import torch

__all__ = ["DualBatches", "split_size"]


def split_size(batch_size: int, ratio: float = 0.5) -> tuple[int, int]:
    """Rows of the forget and of the retain corpus in a batch; at least one of each. Raises InvalidArgument."""
    if not 0 < ratio < 1 or batch_size < 2:
        raise InvalidArgument(f"ratio is a share between 0 and 1 of a batch of 2 or more, got {ratio} of {batch_size}")
    forget = min(max(1, round(batch_size * ratio)), batch_size - 1)
    return forget, batch_size - forget


class DualBatches:
    """Batches whose first rows are of the forget corpus and whose others are of the retain corpus; resumable as they are.

    Each side keeps its own order and epochs. Give each the rows that `split_size` says. Raises InvalidArgument where the
    two differ in width, model or site: their rows would not be of one space.
    """

    def __init__(self, forget: Batches, retain: Batches) -> None:
        self.forget, self.retain = forget, retain
        if forget.d_in != retain.d_in:
            raise InvalidArgument(f"forget rows have width {forget.d_in} and retain rows {retain.d_in}; take one site")
        for name in ("model_hash", "site"):
            one, other = (side.manifest.get(name) for side in (forget, retain))
            if one and other and one != other:
                raise InvalidArgument(f"forget and retain rows differ in {name}: {one} and {other}")
        self.d_in = forget.d_in
        self.batch_size = forget.batch_size + retain.batch_size

    @property
    def labels(self) -> torch.Tensor:
        """[row] bool, of every batch: True where the row is of the forget corpus."""
        torch_: Any = import_module("torch")
        return torch_.arange(self.batch_size) < self.forget.batch_size

    @property
    def manifest(self) -> Mapping[str, Any]:
        """Both, and a hash over both."""
        sides = {"forget": dict(self.forget.manifest), "retain": dict(self.retain.manifest)}
        told = "|".join(str(side.get("data_hash", "")) for side in sides.values())
        rows = [self.forget.batch_size, self.retain.batch_size]
        return {
            "kind": "dual",
            "data_hash": hashlib.sha256(f"{told}|{rows}".encode()).hexdigest(),
            "d_in": self.d_in,
            "rows": rows,
            **{name: sides["forget"][name] for name in ("model_hash", "site") if sides["forget"].get(name)},
            "sides": sides,
        }

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> torch.Tensor:
        torch_: Any = import_module("torch")
        return torch_.cat([next(self.forget), next(self.retain)])

    def state_dict(self) -> dict[str, Any]:
        """Of both sides."""
        return {"kind": "dual", "forget": self.forget.state_dict(), "retain": self.retain.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go where another iteration stood. Raises FailedPrecondition when it was not over the same batches."""
        if state.get("kind") != "dual" or "forget" not in state or "retain" not in state:
            raise FailedPrecondition("the state is of other batches than two corpora's; resume with those it was of")
        self.forget.load_state_dict(state["forget"])
        self.retain.load_state_dict(state["retain"])
