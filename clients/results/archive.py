"""Results as files: one safetensors file, tensors named `input/site`, all the rest as JSON in its metadata.

Any safetensors reader can open it. bfloat16 stays bfloat16. What was asked is there too, the tensors of its hooks as
`asked/…`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.numpy as safetensors_numpy

from ...protos.errors import InvalidArgument
from ...protos.model import Finished, Revised, Started, Token
from ...protos.tensors import Array, Tensor
from ...protos.wire.assemble import AssembledCapture, CaptureKey
from ...protos.wire.codec import from_json, to_json
from ..requests.asked import Asked
from .captures import joined, parted
from .input_result import InputResult
from .metadata import metadata_of

__all__ = ["Saved", "kind_of", "read", "write"]

FORMAT = "probewire result 2"

_numpy: Any = safetensors_numpy  # not annotated


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """What a file holds: a result's parts, or a sweep's."""

    kind: str
    """Run, Generation, Gradients or Sweep."""
    started: Started
    asked: Asked | None
    inputs: tuple[InputResult, ...] = ()
    measured: dict[str, Array] = field(default_factory=dict[str, Array])
    """Of a sweep, by input: [plan, target]."""
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict[str, tuple[Any, ...]])
    """Of a sweep."""


def write(saved: Saved, path: str | Path) -> Path:
    """Write the file, which appears whole or not at all. Raises InvalidArgument for labels that JSON does not have."""
    tensors = {f"measured/{name}": np.asarray(values, order="C") for name, values in saved.measured.items()}
    told: dict[str, Any] = {"kind": saved.kind, "started": to_json(saved.started)}
    if saved.kind == "Sweep":
        told["inputs"] = list(saved.measured)
        told["axes"] = {name: [_label(label, name) for label in labels] for name, labels in saved.axes.items()}
    else:
        told["inputs"] = [_input_to_json(item, tensors) for item in saved.inputs]
    if saved.asked is not None:
        told["asked"] = _parted(to_json(saved.asked), tensors)
    return _write(Path(path), told, tensors)


def kind_of(path: str | Path) -> str:
    """What kind of result a file holds. Raises as `read`."""
    return str(_metadata(Path(path))["kind"])


def read(path: str | Path) -> Saved:
    """What was written. Raises NotFound without a file, InvalidArgument for others."""
    told = _metadata(path := Path(path))
    tensors: dict[str, Array] = _numpy.load_file(path)
    started = from_json(Started, told["started"])
    asked = from_json(Asked, _rejoined(told["asked"], tensors)) if "asked" in told else None
    if told["kind"] == "Sweep":
        axes = {name: tuple(_hashable(label) for label in labels) for name, labels in told["axes"].items()}
        measured = {name: tensors[f"measured/{name}"] for name in told["inputs"]}
        return Saved("Sweep", started, asked, measured=measured, axes=axes)
    inputs = tuple(_input_from_json(item, tensors, started.n_layers) for item in told["inputs"])
    return Saved(told["kind"], started, asked, inputs)


def _write(path: Path, told: dict[str, Any], tensors: dict[str, Array]) -> Path:
    part = path.with_name(path.name + ".part")
    _numpy.save_file(tensors, part, {"format": FORMAT, "result": json.dumps(told)})
    part.replace(path)
    return path


def _parted(data: Any, tensors: dict[str, Array]) -> Any:
    """JSON data with every tensor in it moved out to `tensors`."""
    if isinstance(data, dict):
        given = cast("dict[str, Any]", data)
        if set(given) == {"dtype", "shape", "data"}:
            name = f"asked/{len(tensors)}"
            tensors[name] = from_json(Tensor, given).numpy()
            return {"tensor": name}
        return {key: _parted(value, tensors) for key, value in given.items()}
    return [_parted(value, tensors) for value in cast("list[Any]", data)] if isinstance(data, list) else data


def _rejoined(data: Any, tensors: Mapping[str, Array]) -> Any:
    """What `_parted` parted."""
    if isinstance(data, dict):
        given = cast("dict[str, Any]", data)
        if set(given) == {"tensor"}:
            return to_json(Tensor.of(tensors[given["tensor"]]))
        return {key: _rejoined(value, tensors) for key, value in given.items()}
    return [_rejoined(value, tensors) for value in cast("list[Any]", data)] if isinstance(data, list) else data


def _label(label: Any, axis: str) -> Any:
    """An axis's label as JSON has it."""
    if isinstance(label, np.generic):
        return cast("Any", label).item()
    if isinstance(label, (tuple, list)):
        return [_label(part, axis) for part in cast("tuple[Any, ...]", label)]
    if label is None or isinstance(label, (str, int, float, bool)):
        return label
    raise InvalidArgument(
        f"the labels of axis {axis!r} cannot be written: they are {type(label).__name__}; name the axis by numbers or text"
    )


def _hashable(label: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(label, list):
        label = tuple(_hashable(part) for part in cast("list[Any]", label))
    return label


def _metadata(path: Path) -> dict[str, Any]:
    return json.loads(metadata_of(path, FORMAT, "result.save() of this version")["result"])


def _input_to_json(item: InputResult, tensors: dict[str, Array]) -> dict[str, Any]:
    captures = [_entry_to_json(entry, tensors) for entry in joined(item.captures, item.gradients)]
    return {
        "name": item.name,
        "prompt_ids": item.prompt_ids,
        "prompt_tokens": item.prompt_tokens,
        "new": [to_json(token) for token in item.new],
        "finished": None if item.finished is None else to_json(item.finished),
        "seed": item.seed,
        "revisions": [to_json(revised) for revised in item.revisions],
        "captures": captures,
        "measured": item.measured,
    }


def _entry_to_json(entry: AssembledCapture, tensors: dict[str, Array]) -> dict[str, Any]:
    key = entry.key
    name = "/".join(filter(None, (key.input, key.site, key.part)))
    if name in tensors:  # two hooks at one site
        name = f"{name}/hook{key.hook}"
    if name in tensors:  # one hook that its session changed
        name = f"{name}@r{key.revision}"
    tensors[name] = np.asarray(entry.array, order="C")  # save_file writes the memory as it lies
    return {
        "tensor": name,
        "hook": key.hook,
        "site": key.site,
        "part": key.part,
        "revision": key.revision,
        "id": entry.id,
        "positions": entry.positions,
    }


def _input_from_json(data: dict[str, Any], tensors: dict[str, Array], n_layers: int) -> InputResult:
    captures = [
        AssembledCapture(
            CaptureKey(data["name"], item["hook"], item["site"], item["part"], item["revision"]),
            item["id"],
            tuple(item["positions"]),
            tensors[item["tensor"]],
        )
        for item in data["captures"]
    ]
    values, gradients = parted(captures, n_layers)
    return InputResult(
        data["name"],
        tuple(data["prompt_ids"]),
        tuple(data["prompt_tokens"]),
        tuple(from_json(Token, token) for token in data["new"]),
        None if data["finished"] is None else from_json(Finished, data["finished"]),
        values,
        data["seed"],
        tuple(from_json(Revised, revised) for revised in data["revisions"]),
        gradients,
        tuple(data.get("measured", ())),
    )
