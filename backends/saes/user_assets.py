"""What the server keeps for a user, that requests name: stored captures, loaded SAEs and variants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ...protos.errors import NotFound
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


def _no_variant(name: str) -> FoundVariant:
    raise NotFound(f"no variant {name!r} is loaded here; load it first")


@dataclass(frozen=True, slots=True)
class UserAssets:
    """One user's. All are read when asked for. The maps raise KeyError for what is not the user's to have."""

    captures: Mapping[str, Array] = field(default_factory=dict[str, Array])
    """By id."""
    saes: Mapping[str, Sae] = field(default_factory=dict[str, Sae])
    """By name, those of the model at hand."""
    variant: Callable[[str], FoundVariant] = _no_variant
    """By name, name@version, owner/name or sha256:<hex>; raises NotFound with the names there are."""


EMPTY = UserAssets()
