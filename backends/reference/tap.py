"""How the forward pass shows its values: every site is offered to a tap, and the pass goes on with what it returns."""

from __future__ import annotations

from typing import Protocol

from ...protos.sites import Site
from ...protos.tensors import Array

__all__ = ["Tap", "untouched"]


class Tap(Protocol):
    """Sees each site once, in forward order."""

    def __call__(self, site: Site, value: Array, linear_input: Array | None = None) -> Array:
        """The value to go on with, of the same shape.

        `linear_input` [pos, d_in] is what the linear module that computed the value read; None where a value is not
        the plain output of one.
        """
        ...


def untouched(site: Site, value: Array, linear_input: Array | None = None) -> Array:
    """The tap that changes nothing."""
    del site, linear_input
    return value
