"""What a config says of how weights are stored: in which format, and where."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from ....protos.errors import FailedPrecondition, InvalidArgument

__all__ = ["Layout", "Scheme", "check_runnable", "scheme_of"]

_DEFAULTS = {"affine": (64, 4), "mxfp4": (32, 4), "mxfp8": (32, 8), "nvfp4": (16, 4)}
"""Mode of mlx's → group and bits where a layer's entry leaves them out."""
_MLX_FIELDS = ("group_size", "bits", "mode")
_CONVERTED = ("gptq", "awq", "compressed-tensors", "modelopt")
"""What `probewire convert` writes out."""
_FP8_BLOCK = (128, 128)


@dataclass(frozen=True, slots=True)
class Layout:
    """How one of mlx's packed weights lies in memory."""

    bits: int
    group: int
    """Neighbours along the input axis that share a scale."""
    mode: str = "affine"

    def __str__(self) -> str:
        return f"{self.bits} bit, group {self.group}" + ("" if self.mode == "affine" else f", {self.mode}")


@dataclass(frozen=True, slots=True)
class Scheme:
    """One checkpoint's format."""

    method: str
    """mlx, mxfp4, fp8, or what its `quantization_config` calls itself."""
    layout: Layout = Layout(4, 64)
    """mlx: of the layers that have no entry of their own."""
    layers: Mapping[str, Layout | None] = field(default_factory=dict[str, Layout | None])
    """mlx: module path → its own; None: stored plainly."""
    block: tuple[int, int] | None = None
    """fp8: outputs and inputs that share a scale; None: the whole weight does."""

    def layout_of(self, path: str) -> Layout | None:
        """Of mlx's weight at a module path, which may be a whole model's, of which the layers here are the text model's."""
        if path in self.layers:
            return self.layers[path]
        return next((layout for name, layout in self.layers.items() if name.endswith(f".{path}")), self.layout)

    def told(self, backend: str) -> str:
        """In a few words, with what a backend makes of it."""
        if self.method == "mlx":
            own = Counter(str(layout) if layout else "plain" for layout in self.layers.values())
            own.pop(str(self.layout), None)
            return f"mlx {self.layout}" + "".join(f"; {n} layers {what}" for what, n in sorted(own.items()))
        if self.method == "mxfp4":
            return "mxfp4 experts" + (", dequantised at load" if backend == "torch" else ", as they are packed")
        if self.method == "fp8":
            what = f"in blocks of {self.block[0]} x {self.block[1]}" if self.block else "with a scale a weight"
            return f"fp8 {what}, dequantised at load"
        return self.method


def scheme_of(folder: Path) -> Scheme | None:
    """What a checkpoint folder says; None where its weights are plain. Raises InvalidArgument for a config that says nothing."""
    config = _json(folder / "config.json")
    text = config.get("text_config") or {}
    found = {name: config.get(name) or text.get(name) for name in ("quantization", "quantization_config")}
    if isinstance(found["quantization"], dict):
        return _mlx(found["quantization"])
    told: Any = found["quantization_config"] or _json(folder / "hf_quant_config.json")
    if not told:
        return None
    if not isinstance(told, dict):
        raise InvalidArgument(
            f"quantization_config of {folder / 'config.json'} is no object; take the one of the weights"
        )
    return _told(cast("dict[str, Any]", told), folder)


def _told(told: dict[str, Any], folder: Path) -> Scheme | None:
    if "quant_method" not in told and "bits" in told:  # mlx-lm writes its own under this name too
        return _mlx(told)
    if "quant_method" not in told and "producer" in told:
        return Scheme("modelopt")
    method = str(getattr(told.get("quant_method"), "value", told.get("quant_method")))
    if method == "fp8":
        block = told.get("weight_block_size", _FP8_BLOCK)
        return Scheme("fp8", block=None if block is None else (int(block[0]), int(block[1])))
    if method == "None":
        raise InvalidArgument(
            f"quantization_config of {folder / 'config.json'} names no quant_method; take the config.json of the weights"
        )
    return Scheme(method)


def _mlx(told: dict[str, Any]) -> Scheme:
    try:
        general = _layout(told)
        layers = {
            path: _layout(cast("dict[str, Any]", own)) if isinstance(own, dict) else None
            for path, own in told.items()
            if isinstance(own, dict) or own is False
        }
    except (TypeError, ValueError) as error:
        raise InvalidArgument(
            f"quantization in config.json cannot be read: {error}; it needs {', '.join(_MLX_FIELDS)}"
        ) from None
    return Scheme("mlx", general, layers)


def _layout(told: Mapping[str, Any]) -> Layout:
    mode = told.get("mode") or "affine"
    if mode not in _DEFAULTS:
        raise ValueError(f"mode {mode!r} is not one of {', '.join(_DEFAULTS)}")
    group, bits = _DEFAULTS[mode]
    return Layout(int(told.get("bits") or bits), int(told.get("group_size") or group), mode)


def check_runnable(scheme: Scheme | None, folder: Path, backend: str) -> None:
    """Raise FailedPrecondition for a format that a backend does not load right, with what to do instead."""
    if scheme is None:
        return
    if scheme.method == "mlx" and backend == "torch":
        raise FailedPrecondition(
            f"the checkpoint in {folder} is mlx-lm's ({scheme.layout}), which torch cannot load: use the mlx backend "
            "(MODEL@mlx), or the model that it was made from"
        )
    if backend == "mlx" and scheme.method not in ("mlx", "mxfp4", "fp8"):
        raise FailedPrecondition(
            f"the checkpoint in {folder} is quantised by {scheme.method}, which mlx does not load here: {way_out(scheme)}"
        )


def way_out(scheme: Scheme) -> str:
    """What to do about a format that is not loaded."""
    plain = "take the model that it was made from, and --quantize int4 or int8 where memory is short"
    if scheme.method in _CONVERTED:
        return f"write it out once as plain weights with `probewire convert`, or {plain}"
    return plain


def _json(file: Path) -> dict[str, Any]:
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{file} cannot be read ({error}); fetch or copy it again") from error
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}
