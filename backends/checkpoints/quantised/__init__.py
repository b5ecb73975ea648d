"""Weights that a checkpoint stores in few bits: what its config says of them, and what their values are."""

from .packed import Packed, packed_tensors
from .scheme import Scheme, check_runnable, scheme_of

__all__ = ["Packed", "Scheme", "check_runnable", "packed_tensors", "scheme_of"]
