"""The rows of B, or the columns of A, that may learn at one weight: all others are 0 and stay so, to the bit."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Confinement"]

Mask = NDArray[np.bool_]


@dataclass(slots=True, eq=False)
class Confinement:
    """Of LoRA's two factors of a weight, A [r, d_in] and B [d_out, r]; it can be moved between steps."""

    side: Literal["rows", "columns"]
    """Rows of B (outputs of the weight), or columns of A (its inputs)."""
    a: Any
    b: Any
    inside: Mask
    """[d_out] or [d_in]."""
    first: Any = None
    """A as it was drawn, without zeros: what a column begins with that enters before anything was learned."""

    @property
    def factor(self) -> Any:
        """The one that is confined."""
        return self.b if self.side == "rows" else self.a

    def begin(self) -> None:
        """Zeros outside, now and in every gradient to come; AdamW without decay leaves them there."""
        torch: Any = import_module("torch")
        self.first = self.a.detach().clone()
        with torch.no_grad():
            self.factor.mul_(self._kept())
        self.factor.register_hook(self._confined)

    def begin_full_rank(self) -> None:
        """The rows or columns themselves: one factor picks them and is fixed, the other learns, a rank each."""
        torch: Any = import_module("torch")
        chosen = torch.eye(len(self.inside), device=self.a.device)[torch.from_numpy(self.inside).to(self.a.device)]
        with torch.no_grad():
            self.factor.copy_(chosen.T if self.side == "rows" else chosen)
            (self.a if self.side == "rows" else self.b).zero_()
        self.factor.requires_grad_(requires_grad=False)

    def move(self, inside: Mask, optimizer: Any = None) -> None:
        """Others may learn from now on. What leaves goes back to the base's own numbers, and the optimizer's memory of it too;

        what enters begins as the base.
        """
        torch: Any = import_module("torch")
        entering = torch.from_numpy(inside & ~self.inside).to(self.a.device)
        self.inside = inside
        with torch.no_grad():
            if self.side == "columns" and not bool(self.b.any()):
                # Both factors 0 would have no gradient at all; with B at 0 the product is 0 whatever A holds.
                self.a[:, entering] = self.first[:, entering]
            self.factor.mul_(self._kept())
            # Momentum would go on moving what has no gradient any more.
            moments: dict[str, Any] = {} if optimizer is None else optimizer.state.get(self.factor, {})
            for name in ("exp_avg", "exp_avg_sq"):
                if name in moments:
                    moments[name].mul_(self._kept())

    def _confined(self, gradient: Any) -> Any:
        return gradient * self._kept()

    def _kept(self) -> Any:
        torch: Any = import_module("torch")
        kept = torch.from_numpy(self.inside).to(self.factor)
        return kept[:, None] if self.side == "rows" else kept[None]
