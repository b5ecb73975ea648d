"""A GGUF file of a language model, written once as a checkpoint folder: dequantised weights, config and tokenizer."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ....protos.errors import Internal, InvalidArgument
from ..progress import Progress, Report, ignore_progress
from .gguf_config import config_of, special_ids
from .gguf_header import GgufHeader, gguf_in, read_header
from .gguf_tokenizer import tokenizer_files
from .gguf_weights import Weight, weights_of

__all__ = ["gguf_texts", "stored_as", "write_gguf_folder"]

_TYPES: dict[str, tuple[str, np.dtype[Any]]] = {
    "float32": ("F32", np.dtype(np.float32)),
    "float16": ("F16", np.dtype(np.float16)),
    "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
}
"""Our name of a type -> safetensors' and numpy's."""
_LARGE_VOCABULARY = 100_000


def write_gguf_folder(
    source: Path,
    out: Path,
    report: Report = ignore_progress,
    *,
    dtype: str = "float32",
    config: dict[str, Any] | None = None,
) -> None:
    """Fill the folder `out` from a .gguf file, or from a folder that holds one.

    In float32, which "auto" stands for, every weight is exactly what the file says. `config` replaces fields of config.json. One tensor is in memory
    at a time. Raises InvalidArgument for what cannot be read exactly, FailedPrecondition without the packages it takes.
    """
    dtype = "float32" if dtype == "auto" else dtype
    if dtype not in _TYPES:
        raise InvalidArgument(f"dtype {dtype!r} was given; allowed: auto, {', '.join(_TYPES)}")
    header = read_header(gguf_in(source))
    texts = gguf_texts(header, {**(config or {}), "torch_dtype": dtype})
    weights = weights_of(header)
    out.mkdir(parents=True, exist_ok=True)
    for name, content in texts.items():
        # Python's own encoder takes over for an indented text: ten seconds for a vocabulary of 262 thousand.
        indent = None if len(content.get("model", {}).get("vocab", ())) > _LARGE_VOCABULARY else 2
        (out / name).write_text(json.dumps(content, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")
    _write_weights(out / "model.safetensors", weights, dtype, report)


def stored_as(source: Path) -> str:
    """How a GGUF file stores its weights, as in "gguf Q4_K_M"."""
    return f"gguf {read_header(gguf_in(source)).file_type}"


def gguf_texts(header: GgufHeader, changes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The folder's JSON files: name -> content."""
    found = {**config_of(header), **changes}
    return {
        "config.json": found,
        "generation_config.json": {**special_ids(header), **_ends(header)},
        **tokenizer_files(header),
    }


def _ends(header: GgufHeader) -> dict[str, Any]:
    """Every token that ends an answer, where there are several."""
    keys = [f"tokenizer.ggml.{key}_token_id" for key in ("eos", "eot", "eom")]
    ids = list(dict.fromkeys(int(header.values[key]) for key in keys if key in header.values))
    return {"eos_token_id": ids} if len(ids) > 1 else {}


def _write_weights(path: Path, weights: list[Weight], dtype: str, report: Report) -> None:
    name_of_type, stored = _TYPES[dtype]
    sizes = [math.prod(weight.shape) * stored.itemsize for weight in weights]
    ends = np.cumsum(sizes).tolist()
    # transformers takes a file's tensors for torch's when it says so, and refuses it when it does not.
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for weight, size, end in zip(weights, sizes, ends, strict=True):
        head[weight.name] = {"dtype": name_of_type, "shape": list(weight.shape), "data_offsets": [end - size, end]}
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for weight, end in zip(weights, ends, strict=True):
            values = weight.make()
            if values.shape != weight.shape:
                raise Internal(f"{weight.name} has the shape {values.shape}, expected {weight.shape}")
            file.write(np.ascontiguousarray(values, dtype=stored).view(np.uint8).data)
            report(Progress("dequantise", end, ends[-1]))
