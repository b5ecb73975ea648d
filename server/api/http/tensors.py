"""Arrays on their way out: base64 or nested lists in JSON, or one safetensors file."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import orjson
from safetensors.numpy import save

from ....protos.errors import InvalidArgument
from ....protos.model import TensorFrame
from ....protos.tensors import Array, dtype_name
from ....protos.wire.assemble import AssembledCapture
from ....protos.wire.codec import to_json
from .fields import brief

__all__ = ["Style", "array_json", "capture_json", "capture_names", "frame_json", "safetensors_file", "style_of"]

Style = Literal["base64", "list"]
"""How the numbers of a tensor stand in JSON."""


def array_json(array: Array, style: Style) -> dict[str, Any]:
    """{dtype, shape, data} for JsonResponse. In lists, numbers that JSON lacks (NaN, ±inf) are null."""
    data = base64.b64encode(array.tobytes()).decode() if style == "base64" else lists(array)
    return {"dtype": dtype_name(array.dtype), "shape": list(array.shape), "data": data}


def lists(array: Array) -> Any:
    """What orjson writes as nested lists; a number for an array without axes."""
    if array.dtype.kind not in "fiub" or array.dtype.name == "bfloat16":
        array = array.astype(np.float32)
    return np.asarray(array, order="C") if array.ndim else array.item()


def style_of(value: object) -> Style:
    """`tensors` of a body or a query string; absent: base64."""
    if value not in (None, "base64", "list"):
        raise InvalidArgument(f"tensors {brief(value)}; allowed: base64, list")
    return "list" if value == "list" else "base64"


def capture_json(capture: AssembledCapture, style: Style) -> dict[str, Any]:
    """One site's rows of one hook, with where they come from."""
    key = capture.key
    return {
        "input": key.input,
        "hook": key.hook,
        "id": capture.id,
        "site": key.site,
        "part": key.part,
        "positions": list(capture.positions),
        "revision": key.revision,
        **array_json(capture.array, style),
    }


def frame_json(frame: TensorFrame, style: Style) -> dict[str, Any]:
    """A frame as it is in the contract."""
    if style == "base64":
        return to_json(frame)
    return {
        "input": frame.input,
        "hook": frame.hook,
        "id": frame.id,
        "sites": list(frame.sites),
        "positions": list(frame.positions),
        "step": frame.step,
        "tensor": array_json(frame.tensor.numpy(), style),
        "part": frame.part,
        "revision": frame.revision,
        "hook_revision": frame.hook_revision,
    }


def capture_names(captures: Iterable[AssembledCapture]) -> dict[str, AssembledCapture]:
    """`input/site`, with `#id` behind it where several hooks read the same site, `@r3` where one hook of a session was
    several in turn, and `/part` where there are parts.
    """
    found = list(captures)
    hooks = Counter((k.input, k.site) for k in {(c.key.input, c.key.site, c.key.hook): c.key for c in found}.values())
    turns = Counter(c.key[:4] for c in found)
    names: dict[str, AssembledCapture] = {}
    for capture in found:
        key = capture.key
        name = f"{key.input}/{key.site}"
        if hooks[key.input, key.site] > 1:
            name += f"#{capture.id or key.hook}"
        if turns[key[:4]] > 1:
            name += f"@r{key.revision}"
        names[f"{name}/{key.part}" if key.part else name] = capture
    return names


def safetensors_file(arrays: Mapping[str, Array], metadata: Mapping[str, Any]) -> bytes:
    """One safetensors file; every entry of its metadata is JSON text."""
    texts = {name: orjson.dumps(value).decode() for name, value in metadata.items()}
    return save({name: np.asarray(array, order="C") for name, array in arrays.items()}, texts)
