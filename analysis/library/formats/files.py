"""Reading and writing circuits by the kind of file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ....protos.errors import InvalidArgument, NotFound
from ....protos.model import ModelInfo
from ...circuits import AnySpace, Circuit, Origin
from .acdc import acdc_circuit, is_acdc
from .eap_ig import eap_ig_circuit, eap_ig_json, is_eap_ig
from .neuronpedia_graph import is_neuronpedia, neuronpedia_circuit
from .neuroscope import is_neuroscope, neuroscope_circuit, neuroscope_json
from .pickled import PICKLED, refused
from .shape import Shape
from .units_csv import csv_circuit, csv_text

__all__ = ["FORMATS", "read_circuit", "write_circuit"]

FORMATS = ("probewire", "eap-ig", "neuroscope", "csv")
"""What can be written. Read are also ACDC's edges (as JSON) and Neuronpedia's graphs of neurons."""


def read_circuit(
    path: str | Path,
    *,
    info: ModelInfo | None = None,
    origin: Origin | None = None,
    space: AnySpace | None = None,
    influence: float | None = None,
) -> Circuit:
    """A circuit from a file, whatever tool wrote it; JSON is told apart by what it holds.

    `info`: the model it is of (`client.describe()`), which fills in the hash and the sizes that files leave out. `origin`:
    in place of the file's. Pickles are refused. Raises NotFound, and InvalidArgument for what nobody knows.
    """
    path = Path(path)
    if path.suffix.lower() in PICKLED:
        raise refused(path)
    if not path.is_file():
        raise NotFound(f"there is no file {path}")
    shape = None if info is None else Shape.of(info)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path} is not a text: {error}") from error
    if path.suffix.lower() == ".csv":
        found = csv_circuit(text, space=space, shape=shape, origin=origin)
    else:
        try:
            data = json.loads(text)
        except ValueError as error:
            raise InvalidArgument(f"{path} is not JSON: {error}") from error
        found = _of_json(data, path, shape, origin, influence)
    if info is not None and not found.origin.model_hash:
        found = found.with_origin(model=found.origin.model or info.id, model_hash=info.model_hash)
    return found


def _of_json(data: Any, path: Path, shape: Shape | None, origin: Origin | None, influence: float | None) -> Circuit:
    try:
        return _told_apart(data, path, shape, origin, influence)
    except InvalidArgument:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InvalidArgument(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _told_apart(data: Any, path: Path, shape: Shape | None, origin: Origin | None, influence: float | None) -> Circuit:
    if is_eap_ig(data):
        return eap_ig_circuit(data, shape, origin)
    if is_neuronpedia(data):
        return neuronpedia_circuit(data, _needed(shape, path), origin, influence=influence)
    if is_acdc(data):
        return acdc_circuit(data, _needed(shape, path), origin)
    if is_neuroscope(data):
        return neuroscope_circuit(data, shape, origin)
    if isinstance(data, Mapping) and "format" in data:
        return Circuit.from_json(cast("Mapping[str, Any]", data))
    raise InvalidArgument(
        f"{path} is no circuit that can be read: our own, EAP-IG's or MIB's graph, ACDC's edges, Neuronpedia's graph or NeuroScope's "
        "entry, all as JSON, or a CSV of units"
    )


def _needed(shape: Shape | None, path: Path) -> Shape:
    if shape is None:
        raise InvalidArgument(f"{path} does not say how large its model is; give info=client.describe()")
    return shape


def write_circuit(
    circuit: Circuit,
    path: str | Path,
    *,
    kind: str = "",
    info: ModelInfo | None = None,
) -> Path:
    """Write a circuit for another tool. `kind`: one of FORMATS; default: csv by the file's name, else our own.

    "eap-ig" needs `info`, since it lists every node of the model. Raises InvalidArgument for what the format cannot hold.
    """
    path = Path(path)
    kind = kind or ("csv" if path.suffix.lower() == ".csv" else "probewire")
    if kind not in FORMATS:
        raise InvalidArgument(f"format {kind!r}; allowed: {', '.join(FORMATS)}")
    if kind == "csv":
        path.write_text(csv_text(circuit), encoding="utf-8")
        return path
    if kind == "eap-ig":
        if info is None:
            raise InvalidArgument("EAP-IG's graph lists every node of the model; give info=client.describe()")
        data = eap_ig_json(circuit, Shape.of(info))
    else:
        data = neuroscope_json(circuit) if kind == "neuroscope" else circuit.to_json()
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return path
