"""What the server keeps for a user, that hooks name: stored captures and loaded SAEs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...protos.tensors import Array
from .sae import Sae

__all__ = ["EMPTY", "UserAssets"]


@dataclass(frozen=True, slots=True)
class UserAssets:
    """One user's. Both are read when asked for, and raise KeyError for what is not the user's to have."""

    captures: Mapping[str, Array] = field(default_factory=dict[str, Array])
    """By id."""
    saes: Mapping[str, Sae] = field(default_factory=dict[str, Sae])
    """By name, those of the model at hand."""


EMPTY = UserAssets()
