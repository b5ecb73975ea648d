"""A loaded SAE: its weights as numpy arrays, and what its config says of how to use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...protos.errors import InvalidArgument
from ...protos.latents import Latents, ReadLatents
from ...protos.sites import Site
from ...protos.spec import Hook
from ...protos.tensors import Array
from ..hooks.ranges import most

__all__ = ["Sae", "check_latents", "saes_of"]


@dataclass(frozen=True, slots=True, eq=False)
class Sae:
    """One SAE on one site. f = act((norm(h) − b_dec)·W_enc + b_enc), D(f) = f·W_dec + b_dec."""

    name: str
    site: Site
    architecture: str
    """standard, topk, jumprelu or gated."""
    d_in: int
    d_sae: int
    k: int
    dtype: str
    """Of the weights, in which it encodes and decodes."""
    subtract: bool
    """b_dec is taken off what is encoded."""
    normalize: str
    """none, layer_norm or constant_norm_rescale: what is done to each row first, and undone last."""
    rescale: bool
    """topk: latents are chosen and counted as if each decoder direction had norm 1."""
    arrays: Mapping[str, Array]
    """W_enc [d_in, d_sae], W_dec [d_sae, d_in], b_dec [d_in]; b_enc, threshold, b_gate, b_mag, scale_mag [d_sae]."""
    own_site: str = ""
    """Where its config says that it was trained."""
    hash: str = ""
    device: dict[Any, Any] = field(default_factory=dict[Any, Any])
    """By a backend's operations and device: its own tensors, made at first use on the model's thread."""

    @property
    def n_bytes(self) -> int:
        """Of its weights."""
        return sum(array.nbytes for array in self.arrays.values())


def saes_of(hook: Hook) -> tuple[str, ...]:
    """The names of the SAEs that a hook needs."""
    edit = hook.edit.sae if isinstance(hook.edit, Latents) else None
    reduce = hook.capture.reduce if hook.capture is not None else None
    read = reduce.sae if isinstance(reduce, ReadLatents) else None
    return tuple(name for name in (edit, read) if name is not None)


def check_latents(hook: Hook, sites: tuple[Site, ...], sae: Sae, where: str) -> None:
    """Raise InvalidArgument unless an SAE can do what a hook asks of it."""
    if sites != (sae.site,):
        names = ", ".join(str(site) for site in sites[:3])
        raise InvalidArgument(
            f"{where}: SAE {sae.name!r} was loaded onto {sae.site}, so it cannot be used at {names}; "
            "load it onto that site too, under another name"
        )
    edit = hook.edit
    if isinstance(edit, Latents) and edit.sae == sae.name:
        _check_ids([change.id for change in edit.changes], sae, where)
        _check_numbers(edit, sae, where)
    reduce = hook.capture.reduce if hook.capture is not None else None
    if isinstance(reduce, ReadLatents) and reduce.sae == sae.name:
        _check_ids(list(reduce.ids or ()), sae, where)
        if reduce.top_k is not None and reduce.top_k > sae.d_sae:
            raise InvalidArgument(
                f"{where}: top_k must be in 1 … {sae.d_sae} for SAE {sae.name!r}, which has {sae.d_sae} latents; got {reduce.top_k}"
            )


def _check_numbers(edit: Latents, sae: Sae, where: str) -> None:
    largest = most(sae.dtype)
    for change in edit.changes:
        for name in ("set", "add", "scale", "min", "max"):
            if abs(getattr(change, name) or 0.0) > largest:
                raise InvalidArgument(
                    f"{where}: latent {change.id}: {name} {getattr(change, name)} is beyond {sae.dtype}, in which SAE "
                    f"{sae.name!r} works (at most {largest:g}); load it in another dtype"
                )


def _check_ids(ids: list[int], sae: Sae, where: str) -> None:
    outside = [i for i in ids if i >= sae.d_sae]
    if outside:
        raise InvalidArgument(f"{where}: latents {outside[:8]} are outside 0 … {sae.d_sae - 1} of SAE {sae.name!r}")
