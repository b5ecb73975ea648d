"""In which way a folder stores its weights, from what its files say; never from a list of models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from ....protos.errors import InvalidArgument
from ..json_file import json_object

__all__ = ["ADAPTER_CONFIG", "Kind", "kind_of", "quantization_of", "refuse_unnamed_packing"]

Kind = Literal["gptq", "awq", "compressed-tensors", "pickle", "adapter", "gguf"]
"""What is converted. Everything else loads as it is, or is refused by who loads it."""

ADAPTER_CONFIG = "adapter_config.json"
_QUANTISED: tuple[Kind, ...] = ("gptq", "awq", "compressed-tensors")
_OLD_CONFIG = "quantize_config.json"
"""Where GPTQ's first writers put what config.json says since."""
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_PACKED = (".qweight", ".qzeros", ".weight_packed", ".weight_scale", ".weight_scale_inv")


def kind_of(path: Path) -> Kind | None:
    """What must be converted before it loads; None for a plain folder, and for what is no checkpoint at all.

    Raises InvalidArgument where a folder could be two things.
    """
    if path.suffix.lower() == ".gguf" and path.is_file():
        return "gguf"
    if not path.is_dir():
        return None
    if (path / ADAPTER_CONFIG).is_file():
        return _adapter(path)
    method = _method(path)
    if method in _QUANTISED:
        return method
    if any(path.glob("*.safetensors")):
        return None
    if any((path / name).is_file() for name in _PICKLES):
        return "pickle"
    return "gguf" if any(path.glob("*.gguf")) else None


def quantization_of(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What a folder says of how its weights are packed; empty where it says nothing."""
    inner: Any = config.get("text_config")
    places: list[Any] = [config, inner if isinstance(inner, dict) else {}]
    for place in places:
        for name in ("quantization_config", "compression_config"):
            found: Any = place.get(name)
            if isinstance(found, dict) and found:
                return cast("dict[str, Any]", found)
    old = folder / _OLD_CONFIG
    if not old.is_file():
        return {}
    return {"quant_method": "gptq", **json_object(old)}


def refuse_unnamed_packing(folder: Path, config: Mapping[str, Any], names: list[str]) -> None:
    """Raise InvalidArgument where tensors are packed and nothing says how."""
    packed = [name for name in names if name.endswith(_PACKED)]
    if packed and not quantization_of(folder, config):
        raise InvalidArgument(
            f"{folder} holds {len(packed)} packed tensors, {packed[0]} first, and its config.json says nothing of how they "
            "were quantised (quantization_config); take the config.json that came with them"
        )


def _adapter(folder: Path) -> Kind | None:
    """An adapter, or None for one beside a whole model, which `check_whole` refuses."""
    weights = [*folder.glob("model*.safetensors"), *(folder / name for name in _PICKLES if (folder / name).is_file())]
    return None if weights else "adapter"


def _method(folder: Path) -> Any:
    file = folder / "config.json"
    if not file.is_file():
        return None
    try:
        config = json_object(file)
    except (InvalidArgument, OSError):
        return None  # the check of the folder says so, with all that it knows
    return quantization_of(folder, config).get("quant_method")
