"""Hooks that speak of the latents of a sparse autoencoder (SAE) loaded on the server: its edit and its reduction.

f is a row's latents as the SAE encodes it, D its decoder. The SAE acts at the one site that it was loaded onto.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .errors import InvalidArgument
from .numbers import finite, indices

__all__ = ["LatentChange", "Latents", "ReadLatents"]

MAX_CHANGES = 4096
MAX_NAMED = 4096
MAX_LATENTS_READ = 65_536
"""The most active ones of a row."""


def _sae_name(name: object, what: str) -> None:
    if not isinstance(name, str) or not name:
        raise InvalidArgument(f"{what}.sae must be the name of a loaded SAE, got {name!r}")


@dataclass(frozen=True, slots=True)
class LatentChange:
    """What becomes of one latent's activation: exactly one of set, add and scale, or bounds (min, max, or both)."""

    id: int
    """Index of the latent."""
    set: float | None = None
    """f = set."""
    add: float | None = None
    """f = f + add."""
    scale: float | None = None
    """f = f·scale."""
    min: float | None = None
    """f = max(f, min)."""
    max: float | None = None
    """f = min(f, max)."""
    active: bool = False
    """Only at rows where the latent fires (f > 0)."""

    def __post_init__(self) -> None:
        if isinstance(self.id, bool) or not isinstance(self.id, int) or self.id < 0:  # pyright: ignore[reportUnnecessaryIsInstance] - JSON can hold anything
            raise InvalidArgument(f"latents.changes: id must be an integer of 0 or more, got {self.id!r}")
        given = [name for name in ("set", "add", "scale", "min", "max") if getattr(self, name) is not None]
        for name in given:
            object.__setattr__(self, name, finite(getattr(self, name), f"latents.changes.{name}"))
        if len(given) != 1 and set(given) != {"min", "max"}:
            raise InvalidArgument(
                f"latents.changes: latent {self.id} needs exactly one of set, add and scale, or min, max or both; "
                f"got {', '.join(given) or 'none'}"
            )
        if self.min is not None and self.max is not None and self.min > self.max:
            raise InvalidArgument(f"latents.changes: latent {self.id}: min {self.min} is above max {self.max}")


@dataclass(frozen=True, slots=True)
class Latents:
    """h + D(f') − D(f), f' the latents after the changes: what the SAE does not explain of h stays as it is.

    Without `error`, h becomes D(f'): the SAE's reconstruction in the model's place. Rows whose latents no change moves
    stay bit for bit what they are (with `error`).
    """

    sae: str
    """Name of a loaded SAE."""
    changes: tuple[LatentChange, ...] = ()
    """At most one a latent; all made at once, on the latents of the row as it comes."""
    error: bool = True
    """Keep the SAE's error term, h − D(f)."""

    def __post_init__(self) -> None:
        _sae_name(self.sae, "latents")
        object.__setattr__(self, "changes", tuple(self.changes))
        if len(self.changes) > MAX_CHANGES:
            raise InvalidArgument(f"latents has {len(self.changes)} changes; at most {MAX_CHANGES} are allowed")
        if not self.changes and self.error:
            raise InvalidArgument("latents changes nothing; give changes, or error=false to put the reconstruction in")
        indices(tuple(change.id for change in self.changes) or None, "latents.changes")

    @property
    def units(self) -> None:
        """An SAE reads whole rows."""
        return

    @property
    def heads(self) -> None:
        """An SAE reads whole rows."""
        return


@dataclass(frozen=True, slots=True)
class ReadLatents:
    """The latents of each row: the `top_k` most active, those of `ids`, or (neither) all of them.

    With `top_k`, three tensors: parts `value` and `index` ([pos, top_k]; where fewer fire: 0 and −1) and `count`
    ([pos], how many fire in all, so a count above top_k says that some were left out). Otherwise one, [pos, latent].
    """

    wire_name: ClassVar[str] = "latents"

    sae: str
    """Name of a loaded SAE."""
    top_k: int | None = None
    ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        _sae_name(self.sae, "capture.reduce.latents")
        object.__setattr__(self, "ids", indices(self.ids, "latents.ids"))
        if self.ids is not None and len(self.ids) > MAX_NAMED:
            raise InvalidArgument(
                f"latents.ids names {len(self.ids):,}; at most {MAX_NAMED:,}: leave ids out to read all of them"
            )
        if self.top_k is not None and self.ids is not None:
            raise InvalidArgument("latents: give top_k or ids, not both")
        if self.top_k is not None and not 1 <= self.top_k <= MAX_LATENTS_READ:
            raise InvalidArgument(f"latents.top_k must be in 1 … {MAX_LATENTS_READ}, got {self.top_k}")
