"""A variant: everything that changes a model, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from ..errors import FailedPrecondition, InvalidArgument
from ..model_info import ModelInfo
from ..numbers import finite
from ..spec import Plan
from .delta import Delta, Float32
from .files import Parts, as_modules, from_files, read_folder, to_files, with_card, write_folder
from .hashing import content_hash
from .manifest import Base, Manifest
from .mlx_lm import written_mlx_lm
from .peft import written_peft
from .placing import matched, require_shapes
from .plans import checked_plan, joined_plans, scaled_plan
from .weight_names import checked_weight, matching

__all__ = ["Variant"]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Variant:
    """Low-rank deltas at linear weights, a plan of edits, and a manifest. Immutable; equal where content and manifest are.

    Raises InvalidArgument for names that are no weights, hooks that read, and a variant that changes nothing.
    """

    deltas: Mapping[str, Delta] = field(default_factory=dict[str, Delta])
    """Weight name → its change."""
    plan: Plan = Plan()
    """Applied before the hooks of sessions and requests."""
    manifest: Manifest = Manifest()
    hash: str = field(init=False)
    """SHA-256 of the base's hash, the deltas and the plan, in hex."""

    def __post_init__(self) -> None:
        deltas = {checked_weight(name): self.deltas[name] for name in sorted(self.deltas)}
        for name, delta in deltas.items():
            if not isinstance(delta, Delta):  # pyright: ignore[reportUnnecessaryIsInstance] - notebooks pass anything
                raise InvalidArgument(f"the delta at {name} is a {type(delta).__name__}; give a Delta(a, b, bias=None)")
        checked_plan(self.plan)
        if not deltas and not self.plan.hooks:
            raise InvalidArgument("a variant has deltas, hooks, or both; this one changes nothing")
        object.__setattr__(self, "manifest", replace(self.manifest, base=self.manifest.base.trimmed(deltas.keys())))
        object.__setattr__(self, "deltas", MappingProxyType(deltas))
        object.__setattr__(self, "hash", content_hash(self.manifest.base.model_hash, deltas, self.plan))

    @classmethod
    def load(cls, folder: str | Path) -> Variant:
        """Read a folder of ours, of PEFT or of mlx-lm. Raises NotFound without one, InvalidArgument for what it must not hold."""
        return cls._of(read_folder(Path(folder)), str(folder))

    @classmethod
    def of_files(cls, files: Mapping[str, bytes], where: str) -> Variant:
        """Of the files of a folder, by name. Raises as `load`."""
        return cls._of(from_files(files, where), where)

    @classmethod
    def _of(cls, parts: Parts, where: str) -> Variant:
        variant = cls(parts.deltas, parts.plan, parts.manifest)
        if parts.hash and parts.hash != variant.hash:
            raise InvalidArgument(
                f"{where} says that its content is {parts.hash[:16]}… and it is {variant.hash[:16]}…; it is damaged or was changed "
                "by hand"
            )
        return variant

    def save(self, folder: str | Path) -> Path:
        """Write the folder, which must not be there yet or be empty, with a card (README.md); gives its path."""
        return write_folder(Path(folder), with_card(self.files(), self.deltas, self.plan, self.manifest, self.hash))

    def files(self) -> dict[str, bytes]:
        """The files of its folder, by name."""
        return to_files(self.deltas, self.plan, self.manifest, self.hash)

    def export(
        self,
        folder: str | Path,
        format: Literal["peft", "mlx-lm"] = "peft",  # noqa: A002 - the field's word
        *,
        drop_hooks: bool = False,
    ) -> Path:
        """Write an adapter of another library alone; gives its path. Raises InvalidArgument for what that has no place for."""
        if self.plan.hooks and not drop_hooks:
            raise InvalidArgument(
                f"{self._told()} has {len(self.plan.hooks)} hooks, which {format} knows nothing of; turn those that can be into "
                "deltas (analysis.variants.bake), or give drop_hooks=True"
            )
        found = as_modules(self.deltas, self.manifest.base)
        if found is None:
            raise InvalidArgument(
                f"{self._told()} does not say where its weights lie in a checkpoint; bind it first: variant.bound(client.describe())"
            )
        written = {"peft": written_peft, "mlx-lm": written_mlx_lm}.get(format)
        if written is None:
            raise InvalidArgument(f"format is {format!r}; allowed: peft, mlx-lm")
        return write_folder(Path(folder), written(*found, self.manifest.base.id))

    def bound(self, info: ModelInfo, *, rebase: bool = False) -> Variant:
        """The same as a variant of this model: its names for modules, its hash, every shape held against it.

        Raises FailedPrecondition for a variant of another model (unless `rebase`, which notes the old one in the manifest),
        InvalidArgument for weights that this model does not take deltas at.
        """
        old = self.manifest.base.model_hash
        if old and old != info.model_hash and not rebase:
            raise FailedPrecondition(
                f"{self._told()} is of model {old[:16]}… ({self.manifest.base.id}), and {info.id} is {info.model_hash[:16]}…; give "
                "rebase=True to use it here all the same, where its shapes fit"
            )
        deltas = matched(self.deltas, info.weights)
        require_shapes(deltas, info.weights)
        made_of = self.manifest.made_of
        if old and old != info.model_hash:
            made_of = (*made_of, self._parent() | {"rebased_from": old})
        return Variant(deltas, self.plan, replace(self.manifest, base=Base.of(info), made_of=made_of))

    @property
    def n_bytes(self) -> int:
        """Of the deltas, in float32."""
        return sum(delta.n_bytes for delta in self.deltas.values())

    def scaled(self, factor: float) -> Variant:
        """The same change `factor` times: of deltas exactly, of hooks h + factor·(edit(h) − h).

        Raises InvalidArgument for hooks that have no strength (replace, clamp, project_out, noise, latents).
        """
        factor = finite(factor, "the scale of a variant")
        deltas = {name: delta.scaled(factor) for name, delta in self.deltas.items()}
        return Variant(deltas, scaled_plan(self.plan, factor), self._made("scaled", factor, {"scale": factor}))

    def __add__(self, other: Variant) -> Variant:
        """Both changes, exactly: ranks side by side, hooks in order. Raises FailedPrecondition for variants of two models."""
        one, two = self.manifest.base, other.manifest.base
        if one.model_hash != two.model_hash and one.model_hash and two.model_hash:
            raise FailedPrecondition(
                f"{self._told()} is of model {one.model_hash[:16]}… ({one.id}) and {other._told()} of {two.model_hash[:16]}… "
                f"({two.id}); only variants of one model can be added"
            )
        shared = self.deltas.keys() & other.deltas.keys()
        sums = {name: _added(name, self.deltas[name], other.deltas[name]) for name in shared}
        manifest = Manifest(
            base=one if one.model_hash else two, method="sum", made_of=(self._parent(), other._parent())
        )
        return Variant({**self.deltas, **other.deltas, **sums}, joined_plans(self.plan, other.plan), manifest)

    def only(self, pattern: str) -> Variant:
        """The deltas at some weights, such as `w_down.*`, without the rest and without hooks. Raises InvalidArgument for none."""
        names = matching(tuple(self.deltas), pattern)
        manifest = self._made("only", 1.0, {"pattern": pattern})
        return Variant({name: self.deltas[name] for name in names}, Plan(), manifest)

    def dense(self, name: str) -> Float32:
        """ΔW at a weight, [d_in, d_out]; a weight stored as [d_out, d_in] adds the transpose. Raises InvalidArgument."""
        [found] = matching(tuple(self.deltas), name.replace("[", "[[]").replace("*", "[*]").replace("?", "[?]"))
        return self.deltas[found].dense()

    def compressed(self, *, rank: int | None = None, energy: float | None = None) -> Variant:
        """Deltas of at most this rank, or of the least that keeps so much of each ‖ΔW‖²_F; biases and hooks as they are."""
        squeeze = partial(Delta.compressed, rank=rank, energy=energy)
        options = {"rank": rank} if energy is None else {"energy": energy}
        manifest = self._made("compressed", 1.0, options)
        return Variant({name: squeeze(delta) for name, delta in self.deltas.items()}, self.plan, manifest)

    def named(self, name: str) -> Variant:
        """The same under another name."""
        return replace(self, manifest=replace(self.manifest, name=name))

    def _made(self, method: str, scale: float, options: Mapping[str, Any]) -> Manifest:
        """Of what comes of it: the base stays, reports and figures of the parent do not hold for it."""
        return Manifest(base=self.manifest.base, method=method, options=options, made_of=(self._parent(scale),))

    def _parent(self, scale: float = 1.0) -> dict[str, Any]:
        return {"hash": self.hash, "name": self.manifest.name, "scale": scale}

    def _told(self) -> str:
        return repr(self.manifest.name or self.hash[:12])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Variant):
            return NotImplemented
        return self.hash == other.hash and self.manifest == other.manifest

    def __hash__(self) -> int:
        return hash(self.hash)

    def __repr__(self) -> str:
        ranks = {delta.rank for delta in self.deltas.values()}
        span = f" of rank {min(ranks)}" + (f" to {max(ranks)}" if len(ranks) > 1 else "") if ranks else ""
        hooks = f"{len(self.plan.hooks)} hook{'' if len(self.plan.hooks) == 1 else 's'}"
        count = f"{len(self.deltas)} delta{'' if len(self.deltas) == 1 else 's'}{span}"
        base = self.manifest.base.id or self.manifest.base.model_hash[:12] or "any base"
        return f"Variant({self.manifest.name or 'unnamed'}: {count}, {hooks}; of {base}; sha256:{self.hash[:12]})"


def _added(name: str, one: Delta, other: Delta) -> Delta:
    try:
        return one + other
    except InvalidArgument as error:
        raise InvalidArgument(f"at {name}: {error}") from None
