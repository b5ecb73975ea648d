"""mlx-lm's LoRA adapters, both ways: adapter_config.json and adapters.safetensors, y + scale·(x·a)·b."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, cast

import numpy as np

from ..errors import InvalidArgument
from ..tensors import Array
from .delta import Delta
from .json_file import json_object, json_text
from .manifest import Base, Manifest
from .peft import CONFIG, EMBEDDINGS
from .tensor_file import read_tensors, written_tensors

__all__ = ["MLX_WEIGHTS", "read_mlx_lm", "written_mlx_lm"]

MLX_WEIGHTS = "adapters.safetensors"
_KEY = re.compile(r"(?P<module>[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*)\.(?P<part>lora_a|lora_b)")
_BODY = re.compile(r"transformer\.(?=(h\.[0-9]+|wte|wpe|ln_f)(\.|$))")


def read_mlx_lm(files: Mapping[str, bytes], where: str) -> tuple[dict[str, Delta], Manifest]:
    """Deltas at `module:<path>`, and what the config says. Raises InvalidArgument for other kinds than lora."""
    config = json_object(files[CONFIG], f"{where}/{CONFIG}")
    kind = config.get("fine_tune_type", "lora")
    if kind != "lora":
        raise InvalidArgument(
            f"{where}/{CONFIG} is of the kind {str(kind)[:40]!r}; 'lora' adds a low-rank product, dora and full do not: fuse it with "
            "mlx_lm.fuse and load that as a model, or probewire variant convert --from-models BASE TUNED --energy .99"
        )
    scale = _scale(config, f"{where}/{CONFIG}")
    weights = f"{where}/{MLX_WEIGHTS}"
    found: dict[str, dict[str, Array]] = {}
    for key, array in read_tensors(files[MLX_WEIGHTS], weights).items():
        known = _KEY.fullmatch(key)
        if known is None:
            raise InvalidArgument(f"{weights} holds {key[:120]!r}, which is no lora_a or lora_b of a module")
        if known["module"].rpartition(".")[2] in EMBEDDINGS:
            raise InvalidArgument(
                f"{weights} has a pair at the embedding, which in mlx-lm changes a tied model's head too; train without it, or fuse it"
            )
        found.setdefault(known["module"], {})[known["part"]] = array
    deltas = {f"module:{module}": _delta(module, parts, scale, weights) for module, parts in found.items()}
    deltas = {name: delta for name, delta in deltas.items() if delta.b.any()}  # trained, or left at mlx-lm's zeros
    if not deltas:
        raise InvalidArgument(f"{weights} changes no module: there are no factors, or all are zero")
    base = config.get("model")
    manifest = Manifest(base=Base(id=base if isinstance(base, str) else ""), method="lora", options={"scale": scale})
    return deltas, manifest


def written_mlx_lm(deltas: Mapping[str, Delta], embedding: str | None, base: str) -> dict[str, bytes]:
    """The two files. `deltas` by module path; `embedding`: the path whose delta is of a lookup.

    mlx-lm has one rank for all modules, so smaller ones are filled up with zeros. Raises InvalidArgument where it has no such
    adapter: biases, and an embedding's pair (which would change a tied head too).
    """
    if biased := [path for path, delta in deltas.items() if delta.bias is not None]:
        raise InvalidArgument(
            f"mlx-lm's adapters have no biases, and the delta at {biased[0]} has one; merge it into a checkpoint"
        )
    if embedding is not None:
        raise InvalidArgument(
            f"mlx-lm's adapter at the embedding ({embedding}) would change a tied head too; merge it into a checkpoint"
        )
    rank = max(delta.rank for delta in deltas.values())
    tensors: dict[str, Array] = {}
    keys: list[str] = []
    for path, delta in deltas.items():
        own, more = _BODY.sub("model.", path), rank - delta.rank
        keys.append(own)
        tensors[f"{own}.lora_a"] = np.pad(delta.a, ((0, 0), (0, more)))
        tensors[f"{own}.lora_b"] = np.pad(delta.b, ((0, more), (0, 0)))
    config = {
        "fine_tune_type": "lora",
        "model": base,
        "num_layers": -1,  # all; keys are whole paths, so no other module is touched
        "lora_parameters": {"rank": rank, "scale": 1.0, "dropout": 0.0, "keys": sorted(keys)},
    }
    return {CONFIG: json_text(config), MLX_WEIGHTS: written_tensors(tensors, {"format": "mlx"})}


def _scale(config: Mapping[str, Any], where: str) -> float:
    given: Any = config.get("lora_parameters")
    scale: Any = cast("dict[str, Any]", given).get("scale") if isinstance(given, dict) else None
    if isinstance(scale, bool) or not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise InvalidArgument(f"{where} has no scale in lora_parameters, got {str(scale)[:40]!r}; fetch it again")
    return float(scale)


def _delta(module: str, parts: Mapping[str, Array], scale: float, where: str) -> Delta:
    if set(parts) != {"lora_a", "lora_b"}:
        raise InvalidArgument(f"{where} has only {', '.join(parts)} of {module}; fetch it again")
    try:
        return Delta(parts["lora_a"], parts["lora_b"]).scaled(scale)
    except InvalidArgument as error:
        raise InvalidArgument(f"{where}: {module}: {error}") from None
