"""Results as files: one safetensors file, tensors named `input/site`, all the rest as JSON in its metadata.

Any safetensors reader can open it. bfloat16 stays bfloat16.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
import safetensors.numpy as safetensors_numpy

from ..protos.assemble import AssembledCapture, CaptureKey
from ..protos.errors import InvalidArgument, NotFound
from ..protos.model import Finished, Revised, Started, Token
from ..protos.tensors import Array
from ..protos.wire import from_json, to_json
from .captures import joined, parted

if TYPE_CHECKING:
    from .results import InputResult, Result

__all__ = ["load", "save"]

FORMAT = "probewire result 2"

_safetensors: Any = safetensors  # not annotated
_numpy: Any = safetensors_numpy  # not annotated


def save(result: Result, path: str | Path) -> Path:
    """Write a result. The file appears whole or not at all."""
    path = Path(path)
    tensors: dict[str, Array] = {}
    inputs = [_input_to_json(item, tensors) for item in result.inputs.values()]
    told = {"kind": type(result).__name__, "started": to_json(result.started), "inputs": inputs}
    part = path.with_name(path.name + ".part")
    _numpy.save_file(tensors, part, {"format": FORMAT, "result": json.dumps(told)})
    part.replace(path)
    return path


def load(path: str | Path) -> Result:
    """Read what `save` wrote. Raises NotFound without a file, InvalidArgument for any other file."""
    from .results import Generation, Gradients, Run

    path = Path(path)
    if not path.exists():
        raise NotFound(f"no file {path}")
    told = _metadata(path)
    tensors: dict[str, Array] = _numpy.load_file(path)
    started = from_json(Started, told["started"])
    inputs = {item["name"]: _input_from_json(item, tensors) for item in told["inputs"]}
    return {"Run": Run, "Generation": Generation, "Gradients": Gradients}[told["kind"]](started, inputs)


def _metadata(path: Path) -> dict[str, Any]:
    try:
        with _safetensors.safe_open(path, "np") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise InvalidArgument(f"{path} is not a safetensors file: {error}") from None
    if metadata.get("format") != FORMAT:
        raise InvalidArgument(
            f"{path} was not written by result.save() of this version: its format is {metadata.get('format')!r}, "
            f"not {FORMAT!r}"
        )
    return json.loads(metadata["result"])


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
    tensors[name] = np.ascontiguousarray(entry.array)  # save_file writes the memory as it lies
    return {
        "tensor": name,
        "hook": key.hook,
        "site": key.site,
        "part": key.part,
        "revision": key.revision,
        "id": entry.id,
        "positions": entry.positions,
    }


def _input_from_json(data: dict[str, Any], tensors: dict[str, Array]) -> InputResult:
    from .results import InputResult

    captures = [
        AssembledCapture(
            CaptureKey(data["name"], item["hook"], item["site"], item["part"], item["revision"]),
            item["id"],
            tuple(item["positions"]),
            tensors[item["tensor"]],
        )
        for item in data["captures"]
    ]
    values, gradients = parted(captures)
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
