"""A variant merged into its base: a checkpoint folder that transformers and mlx-lm load, by the way that adapters are merged."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ....protos.errors import FailedPrecondition
from ....protos.tensors import Array
from ....protos.variants.delta import Delta
from ....protos.variants.files import as_modules
from ....protos.variants.variant import Variant
from ..checkpoint import convert_model, resolve_model
from ..conversion.plain import STORES_TRANSPOSED
from ..conversion.source import FileTensors
from ..json_file import json_object
from ..progress import Progress
from .stored_names import find_stored

__all__ = ["MergedVariant", "merge_variant"]

MAX_LOST = 0.1
"""Of a delta's energy: beyond, the written weights are no longer that variant's."""


@dataclass(frozen=True, slots=True)
class MergedVariant:
    """What was written."""

    folder: Path
    lost: Mapping[str, float]
    """Module → ‖(W' − W) − ΔW‖²_F / ‖ΔW‖²_F, W' as written and W rounded likewise: what that took away of the change."""


def merge_variant(
    base: Path,
    variant: Variant,
    out: Path,
    *,
    dtype: str = "float32",
    drop_hooks: bool = False,
    rebase: bool = False,
    force: bool = False,
    cache_dir: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> MergedVariant:
    """Write base and variant as one plain checkpoint, a head of its own where the base's is the embedding and one of both is changed.

    Raises InvalidArgument for hooks (unless `drop_hooks`) and for what no checkpoint holds; FailedPrecondition for another base
    (unless `rebase`) and, where a narrow dtype loses more than a tenth of a delta, unless `force`.
    """
    told = variant.manifest.base.model_hash
    if told and not rebase:
        own = resolve_model(str(base), cache_dir=cache_dir).model_hash
        if own != told:
            raise FailedPrecondition(
                f"the variant is of model {told[:16]}…, and {base} is {own[:16]}…; give the base that it was made for, or rebase it"
            )
    with tempfile.TemporaryDirectory(prefix="probewire-merge-") as folder:
        adapter = variant.export(Path(folder) / "adapter", "peft", drop_hooks=drop_hooks)
        made = convert_model(
            str(adapter), out, dtype=dtype, base=str(base), cache_dir=cache_dir, progress=progress
        ).folder
    modules = as_modules(variant.deltas, variant.manifest.base)
    assert modules is not None  # else there was nothing to export
    lost = _lost(base, made, modules[0], modules[1])
    worst = max(lost, key=lambda module: lost[module])
    if lost[worst] > MAX_LOST and not force:
        shutil.rmtree(made)
        raise FailedPrecondition(
            f"rounding to {dtype} would take away {lost[worst]:.0%} of the change at {worst}; write float32, or force it"
        )
    return MergedVariant(made, lost)


def _lost(base: Path, made: Path, deltas: Mapping[str, Delta], lookup: str | None) -> dict[str, float]:
    before, after = FileTensors.of(base), FileTensors.of(made)
    turned = json_object(base / "config.json").get("model_type") in STORES_TRANSPOSED
    lost: dict[str, float] = {}
    for path, delta in deltas.items():
        new = _tensor(after, path)
        held = path if find_stored(before.stored, f"{path}.weight") else _embedding(before)
        old = _tensor(before, held).astype(new.dtype)
        dense = delta.dense()
        change = dense if path == lookup or (turned and not path.endswith("lm_head")) else dense.T
        size = float(np.square(change, dtype=np.float64).sum())
        lost[path] = (
            float(np.square(new.astype(np.float32) - old.astype(np.float32) - change, dtype=np.float64).sum()) / size
            if size
            else 0.0
        )
    return lost


def _tensor(tensors: FileTensors, path: str) -> Array:
    return tensors.get(find_stored(tensors.stored, f"{path}.weight"))


def _embedding(tensors: FileTensors) -> str:
    """The path of a tied head's matrix."""
    ends = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
    return next(name for name in tensors.stored if name.endswith(ends)).removesuffix(".weight")
