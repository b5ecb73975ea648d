"""Control vectors as GGUF files, the form in which llama.cpp, repeng and the hub have them.

Tensors `direction.N` [d_model], of which N is the block, from 0, after which llama.cpp and repeng add them: `resid_post.N`.
(llama.cpp keeps `direction.N` at N − 1 in a buffer that it reads at il − 1 for block il, so that the two take each other
back; it has no place for block 0.) They are added as they are, times a strength, at every token: `steer(vector, strength)`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..protos.errors import FailedPrecondition, InvalidArgument, NotFound
from ..protos.sites import Site
from .results.labelled import required

if TYPE_CHECKING:
    from ..protos.model import ModelInfo

__all__ = ["ControlVector", "read", "write"]

ARCHITECTURE = "controlvector"
_DIRECTION = re.compile(r"direction\.(\d+)")


@dataclass(frozen=True, slots=True)
class ControlVector:
    """What such a file holds."""

    directions: Mapping[str, Any]
    """By site, each [d_model]."""
    made: str
    """How, in words."""
    hint: str = ""
    """What the model's config calls its `model_type`."""


def write(vector: ControlVector, path: Path) -> Path:
    """Write a vector of the residual stream. Raises InvalidArgument for sites that have no place in such a file."""
    gguf = required("gguf", "writing GGUF files")
    layers = {_layer(site): direction for site, direction in vector.directions.items()}
    part = path.with_name(path.name + ".part")
    writer = gguf.GGUFWriter(part, ARCHITECTURE)
    writer.add_string(f"{ARCHITECTURE}.model_hint", vector.hint)
    writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(layers))
    if vector.made:
        writer.add_string("general.description", vector.made)
    for layer in sorted(layers):
        writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(layers[layer], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(path)
    return path


def _layer(name: str) -> int:
    site = Site.parse(name)
    if site.name != "resid_post" or not site.layer:
        raise InvalidArgument(
            f"{name} has no place in a control vector, which acts after blocks 1, 2, … (resid_post.1 and on); write a "
            "part of the vector, vector.at(…).to_gguf(…), or save it as it is: vector.save(…)"
        )
    return site.layer


def read(path: Path, model: ModelInfo | None = None, *, any_model: bool = False) -> ControlVector:
    """A vector at `resid_post.N` for each `direction.N`. `model`: the one it is for, which a file does not name exactly.

    With a model it is checked against it (width, layers, the `model_hint`) and refused on any other; without one only the
    width is checked, by the server. Raises NotFound without a file, InvalidArgument for other files, FailedPrecondition
    when the file says that it is for another kind of model, unless `any_model`.
    """
    if not path.exists():
        raise NotFound(f"no file {path}")
    gguf = required("gguf", "reading GGUF files")
    try:
        reader = gguf.GGUFReader(path)
    except (ValueError, OSError) as error:
        raise InvalidArgument(f"{path} is not a GGUF file: {error}") from None
    if _text(reader, "general.architecture") != ARCHITECTURE:
        raise InvalidArgument(
            f"{path} holds no control vector: its architecture is {_text(reader, 'general.architecture')!r}"
        )
    directions: dict[int, Any] = {}
    for tensor in reader.tensors:
        found = _DIRECTION.fullmatch(tensor.name)
        if found is None or tensor.data.ndim != 1 or tensor.data.dtype.kind != "f":
            raise InvalidArgument(
                f"{path}: tensor {tensor.name!r} of shape {list(tensor.data.shape)} is no direction.N of one axis in "
                "float32 or float16"
            )
        directions[int(found[1])] = np.array(tensor.data)
    if not directions:
        raise InvalidArgument(f"{path} holds no directions")
    hint = _text(reader, f"{ARCHITECTURE}.model_hint")
    if model is not None:
        _require_fitting(path, directions, hint, model, any_model)
    made = _text(reader, "general.description") or f"read from {path.name}"
    return ControlVector({f"resid_post.{layer}": directions[layer] for layer in sorted(directions)}, made, hint)


def _require_fitting(path: Path, directions: dict[int, Any], hint: str, model: ModelInfo, any_model: bool) -> None:
    widths, last = {len(value) for value in directions.values()}, max(directions)
    if widths != {model.d_model} or last >= model.n_layers:
        raise InvalidArgument(
            f"{path} holds directions of width {sorted(widths)} up to layer {last}, and {model.id} is {model.d_model} wide "
            f"and has layers 0 … {model.n_layers - 1}: it is of another model"
        )
    if hint not in (model.architecture, model.family) and not any_model:
        raise FailedPrecondition(
            f"{path} says that it is for a {hint!r}, and {model.id} is a {model.architecture!r}; if it is for this model "
            "all the same, say any_model=True"
        )


def _text(reader: Any, name: str) -> str:
    """A field of text; empty where there is none."""
    field = reader.get_field(name)
    return "" if field is None or not len(field.parts) else bytes(field.parts[-1]).decode(errors="replace")
