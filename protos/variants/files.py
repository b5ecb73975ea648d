"""A variant's folder: which files it has, and what is in each."""

from __future__ import annotations

import json
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
from .delta import Delta
from .manifest import Manifest
from .tensor_file import read_tensors, written_tensors

__all__ = ["FILES", "Parts", "from_files", "read_folder", "to_files", "write_folder"]

MANIFEST, PLAN, PLAN_TENSORS, DELTAS = "variant.json", "plan.json", "plan.safetensors", "deltas.safetensors"
FILES = (MANIFEST, PLAN, PLAN_TENSORS, DELTAS)
"""What is read of a folder; others are left alone."""
MAX_JSON_BYTES = 4 << 20
FORMAT, VERSION = "probewire.variant", 1


@dataclass(frozen=True, slots=True)
class Parts:
    """What a folder holds."""

    deltas: Mapping[str, Delta]
    plan: Plan = Plan()
    manifest: Manifest = Manifest()
    hash: str = ""
    """What it says of its content; empty: nothing."""


def to_files(deltas: Mapping[str, Delta], plan: Plan, manifest: Manifest, content: str) -> dict[str, bytes]:
    """The files by name."""
    told = {"format": FORMAT, "version": VERSION, "hash": content, **manifest.to_json()}
    files = {MANIFEST: _text(told)}
    if deltas:
        arrays = {f"{name}.{part}": array for name, delta in deltas.items() for part, array in _factors(delta).items()}
        files[DELTAS] = written_tensors(arrays, {"format": FORMAT})
    if plan.hooks:
        tensors: dict[str, Array] = {}
        files[PLAN] = _text(_parted(to_json(plan), tensors))
        if tensors:
            files[PLAN_TENSORS] = written_tensors(tensors)
    return files


def from_files(files: Mapping[str, bytes], where: str) -> Parts:
    """What the files hold. Raises InvalidArgument for what they must not hold."""
    if MANIFEST not in files:
        raise InvalidArgument(f"{where} has no {MANIFEST}; give a folder that Variant.save wrote")
    told = _json(files[MANIFEST], f"{where}/{MANIFEST}")
    if not isinstance(told, dict) or cast("dict[str, Any]", told).get("format") != FORMAT:
        raise InvalidArgument(f"{where}/{MANIFEST} is no manifest of a variant: its format is not {FORMAT!r}")
    given = cast("dict[str, Any]", told)
    if given.pop("version", None) != VERSION:
        raise InvalidArgument(f"{where}/{MANIFEST} is of another version; this one reads version {VERSION}")
    content = given.pop("hash", "")
    if not isinstance(content, str):
        raise InvalidArgument(f"{where}/{MANIFEST}: hash is a text, got {str(content)[:60]!r}")
    del given["format"]
    manifest = Manifest.from_json(given)
    return Parts(_deltas(files, where), _plan(files, where), manifest, content)


def read_folder(folder: Path) -> Parts:
    """What a folder on this machine holds. Raises NotFound without it, InvalidArgument for what it must not hold."""
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}; give one that Variant.save wrote")
    return from_files(folder_files(folder), str(folder))


def folder_files(folder: Path) -> dict[str, bytes]:
    """The bytes of the files that matter."""
    try:
        return {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}
    except OSError as error:
        raise InvalidArgument(f"{folder} cannot be read: {error}") from None


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
    data = _json(files[PLAN], f"{where}/{PLAN}")
    return from_json(Plan, _rejoined(data, tensors, where), "plan")


def _text(data: Any) -> bytes:
    return (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _json(data: bytes, what: str) -> Any:
    if len(data) > MAX_JSON_BYTES:
        raise InvalidArgument(f"{what} has {len(data):,} bytes; at most {MAX_JSON_BYTES:,} are allowed")
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{what} is no JSON: {error}") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


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
