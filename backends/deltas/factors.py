"""A variant's deltas as one model computes with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ...protos.spec import Where
from ...protos.tensors import Array

__all__ = ["EMBED", "UNEMBED", "BoundUse", "BoundVariant", "Factors"]

EMBED, UNEMBED = "w_embed", "w_unembed"
"""What the two stand under among a variant's factors, as they may be one module; the others by module path."""


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """What a variant adds to one module's weight, as wide as all that the module gives."""

    a: Array
    """[d_in, r]."""
    b: Array
    """[r, d_out]."""
    bias: Array | None = None
    """[d_out]."""

    @property
    def nbytes(self) -> int:
        """Of all three."""
        return self.a.nbytes + self.b.nbytes + (0 if self.bias is None else self.bias.nbytes)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class BoundVariant:
    """A variant's deltas on one model."""

    hash: str
    factors: Mapping[str, Factors]
    """By module path, and EMBED and UNEMBED."""


class Decision(Protocol):
    """What the prompt decides."""

    @property
    def decided(self) -> bool:
        """Whether the condition holds; asked once the prompt has been read."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class BoundUse:
    """A variant as one sequence runs with it."""

    variant: BoundVariant
    scale: float = 1.0
    where: Where = Where()
    gate: Decision | None = None
    """What the prompt decides, where the use has a condition."""

    @property
    def key(self) -> tuple[str, float]:
        """Uses that are alike but for their rows."""
        return self.variant.hash, self.scale
