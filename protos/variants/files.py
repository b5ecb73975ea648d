"""A variant's folder: which files it has, and what is in each."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from ..errors import FailedPrecondition, InvalidArgument, NotFound
from ..spec import Plan
from ..tensors import Array, Tensor
from ..wire.codec import from_json, to_json
from .card import card
from .delta import Delta
from .json_file import json_object, json_text
from .manifest import Base, Manifest
from .mlx_lm import MLX_WEIGHTS, read_mlx_lm
from .peft import CONFIG, EMBEDDINGS, WEIGHTS, read_peft, written_peft
from .placing import RAW, by_module, checkpoint_path, gathered, module_of
from .tensor_file import read_tensors, written_tensors

__all__ = [
    "FILES",
    "Parts",
    "as_modules",
    "folder_files",
    "from_files",
    "read_folder",
    "to_files",
    "with_card",
    "write_folder",
]

MANIFEST, PLAN, PLAN_TENSORS, DELTAS, CARD = (
    "variant.json",
    "plan.json",
    "plan.safetensors",
    "deltas.safetensors",
    "README.md",
)
FILES = (MANIFEST, PLAN, PLAN_TENSORS, DELTAS, CONFIG, WEIGHTS, MLX_WEIGHTS)
"""What is read of a folder; others are left alone."""
FORMAT, VERSION = "probewire.variant", 1
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".npz", ".ckpt")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a folder holds."""

    deltas: Mapping[str, Delta]
    plan: Plan = Plan()
    manifest: Manifest = Manifest()
    hash: str = ""
    """What it says of its content; empty: nothing."""


def to_files(deltas: Mapping[str, Delta], plan: Plan, manifest: Manifest, content: str) -> dict[str, bytes]:
    """The files by name: a PEFT adapter wherever PEFT has such a one, and our own where that does not give the same back."""
    peft, same = _as_peft(deltas, manifest.base)
    told = {"format": FORMAT, "version": VERSION, "hash": content, "complete_in_peft": bool(peft) and not plan.hooks}
    files = {MANIFEST: json_text(told | manifest.to_json()), **peft}
    if deltas and not (peft and same):
        arrays = {f"{name}.{part}": array for name, delta in deltas.items() for part, array in _factors(delta).items()}
        files[DELTAS] = written_tensors(arrays, {"format": FORMAT})
    if plan.hooks:
        tensors: dict[str, Array] = {}
        files[PLAN] = json_text(_parted(to_json(plan), tensors))
        if tensors:
            files[PLAN_TENSORS] = written_tensors(tensors)
    return files


def with_card(
    files: Mapping[str, bytes], deltas: Mapping[str, Delta], plan: Plan, manifest: Manifest, content: str
) -> dict[str, bytes]:
    """The same and README.md, which is of the folder alone: it is not sent to a server."""
    text = card(deltas, plan, manifest, content, in_peft=CONFIG in files and not plan.hooks)
    return {**files, CARD: text.encode()}


def from_files(files: Mapping[str, bytes], where: str) -> Parts:
    """What the files hold: ours, PEFT's or mlx-lm's. Raises InvalidArgument for what they must not hold."""
    if MANIFEST in files:
        return _ours(files, where)
    if CONFIG in files and MLX_WEIGHTS in files and WEIGHTS not in files:
        return Parts(*_found(read_mlx_lm(files, where)))
    if CONFIG in files:
        return Parts(*_found(read_peft(files, where)))
    raise InvalidArgument(
        f"{where} has neither {MANIFEST} (of Variant.save) nor {CONFIG} with {WEIGHTS} (PEFT) or {MLX_WEIGHTS} (mlx-lm)"
    )


def _found(read: tuple[dict[str, Delta], Manifest]) -> tuple[dict[str, Delta], Plan, Manifest]:
    return read[0], Plan(), read[1]


def _ours(files: Mapping[str, bytes], where: str) -> Parts:
    given = json_object(files[MANIFEST], f"{where}/{MANIFEST}")
    if given.pop("format", None) != FORMAT:
        raise InvalidArgument(f"{where}/{MANIFEST} is no manifest of a variant: its format is not {FORMAT!r}")
    if given.pop("version", None) != VERSION:
        raise InvalidArgument(f"{where}/{MANIFEST} is of another version; this one reads version {VERSION}")
    content = given.pop("hash", "")
    if not isinstance(content, str) or not isinstance(given.pop("complete_in_peft", True), bool):
        raise InvalidArgument(f"{where}/{MANIFEST}: hash is a text, and complete_in_peft true or false")
    manifest = Manifest.from_json(given)
    if DELTAS in files or CONFIG not in files:
        deltas = _deltas(files, where)
    else:
        names = {checkpoint_path(module_of(weight)): weight.name for weight in manifest.base.weights}
        deltas = {_own(name, names): delta for name, delta in read_peft(files, where)[0].items()}
    return Parts(deltas, _plan(files, where), manifest, content)


def as_modules(deltas: Mapping[str, Delta], base: Base) -> tuple[dict[str, Delta], str | None] | None:
    """The deltas by path in a checkpoint, and which of them is a lookup's; None where a weight's path is not known."""
    whole = gathered(deltas, base.weights, base.architecture)
    if not whole:
        return None
    paths = {checkpoint_path(path): delta for path, delta in whole.items()}
    lookups = [path for path in paths if path.rpartition(".")[2] in EMBEDDINGS]
    return paths, (lookups[0] if lookups else None)


def _as_peft(deltas: Mapping[str, Delta], base: Base) -> tuple[dict[str, bytes], bool]:
    """PEFT's files, empty where it has no such adapter; and whether reading them gives the same deltas."""
    found = as_modules(deltas, base)
    if found is None:
        return {}, False
    paths, lookup = found
    try:
        files = written_peft(paths, lookup, base.id)
    except InvalidArgument:
        return {}, False
    alone = {checkpoint_path(path): parts[0].name for path, parts in by_module(base.weights).items() if len(parts) == 1}
    back = {"w_embed" if path == lookup else _own(f"{RAW}{path}", alone) for path in paths}
    return files, back == set(deltas)


def _own(name: str, names: Mapping[str, str]) -> str:
    return names.get(name.removeprefix(RAW), name)


def read_folder(folder: Path) -> Parts:
    """What a folder on this machine holds. Raises NotFound without it, InvalidArgument for what it must not hold."""
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}; give one that Variant.save wrote")
    return from_files(folder_files(folder), str(folder))


def folder_files(folder: Path) -> dict[str, bytes]:
    """The bytes of the files that matter. Raises InvalidArgument for a folder that has pickles in their place."""
    try:
        files = {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise InvalidArgument(f"{folder} cannot be read: {error}") from None
    pickles = [name for name in names if name.endswith(_PICKLES)]
    if pickles and MANIFEST not in files and not any(name.endswith(".safetensors") for name in files):
        raise InvalidArgument(f"{folder} holds {pickles[0]}, a pickle, which is never opened; save it as safetensors")
    return files


def write_folder(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write files into a new folder, which appears whole or not at all. Raises FailedPrecondition for one that holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FailedPrecondition(f"{folder} is there already; choose another folder, or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for name, data in files.items():
        (part / name).write_bytes(data)
    if folder.exists():
        folder.rmdir()
    return part.replace(folder)


def _factors(delta: Delta) -> dict[str, Array]:
    return {"a": delta.a, "b": delta.b} | ({} if delta.bias is None else {"bias": delta.bias})


def _deltas(files: Mapping[str, bytes], where: str) -> dict[str, Delta]:
    found: dict[str, dict[str, Array]] = {}
    if DELTAS in files:
        for key, array in read_tensors(files[DELTAS], f"{where}/{DELTAS}").items():
            name, _, part = key.rpartition(".")
            found.setdefault(name, {})[part] = array
    for name, parts in found.items():
        if not {"a", "b"} <= parts.keys() <= {"a", "b", "bias"}:
            raise InvalidArgument(
                f"{where}/{DELTAS}: {name[:80]!r} has {sorted(parts)}; a delta has a, b and perhaps bias"
            )
    return {name: _delta(name, parts, where) for name, parts in found.items()}


def _delta(name: str, parts: Mapping[str, Array], where: str) -> Delta:
    try:
        return Delta(**parts)
    except InvalidArgument as error:
        raise InvalidArgument(f"{where}/{DELTAS}: {name[:80]}: {error}") from None


def _plan(files: Mapping[str, bytes], where: str) -> Plan:
    if PLAN not in files:
        return Plan()
    tensors = read_tensors(files[PLAN_TENSORS], f"{where}/{PLAN_TENSORS}") if PLAN_TENSORS in files else {}
    data = json_object(files[PLAN], f"{where}/{PLAN}")
    return from_json(Plan, _rejoined(data, tensors, where), "plan")


def _parted(data: Any, tensors: dict[str, Array]) -> Any:
    """JSON data with every tensor moved out to `tensors`."""
    if isinstance(data, list):
        return [_parted(item, tensors) for item in cast("list[Any]", data)]
    if not isinstance(data, dict):
        return data
    given = cast("dict[str, Any]", data)
    if given.keys() != {"dtype", "shape", "data"}:
        return {key: _parted(item, tensors) for key, item in given.items()}
    name = f"plan.{len(tensors)}"
    tensors[name] = from_json(Tensor, given).numpy()
    return {"tensor": name}


def _rejoined(data: Any, tensors: Mapping[str, Array], where: str) -> Any:
    """What `_parted` parted."""
    if isinstance(data, list):
        return [_rejoined(item, tensors, where) for item in cast("list[Any]", data)]
    if not isinstance(data, dict):
        return data
    given = cast("dict[str, Any]", data)
    if given.keys() != {"tensor"}:
        return {key: _rejoined(item, tensors, where) for key, item in given.items()}
    name = given["tensor"]
    if not isinstance(name, str) or name not in tensors:
        raise InvalidArgument(
            f"{where}/{PLAN} names tensor {str(name)[:60]!r}; {PLAN_TENSORS} has {sorted(tensors)[:12]}"
        )
    return to_json(Tensor.of(np.asarray(tensors[name])))
