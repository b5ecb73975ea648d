"""What the server keeps for a user, that requests name: stored captures, loaded SAEs and variants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...protos.tensors import Array
from ...protos.variants.variant import Variant
from .sae import Sae

__all__ = ["EMPTY", "FoundVariant", "UserAssets"]


@dataclass(frozen=True, slots=True)
class FoundVariant:
    """What a variant's name stands for."""

    name: str
    version: int
    owner: str
    variant: Variant


@dataclass(frozen=True, slots=True)
class UserAssets:
    """One user's. All are read when asked for, and raise KeyError for what is not the user's to have."""

    captures: Mapping[str, Array] = field(default_factory=dict[str, Array])
    """By id."""
    saes: Mapping[str, Sae] = field(default_factory=dict[str, Sae])
    """By name, those of the model at hand."""
    variants: Mapping[str, FoundVariant] = field(default_factory=dict[str, FoundVariant])
    """By name, name@version, owner/name or sha256:<hex>, those of the model at hand."""


EMPTY = UserAssets()
