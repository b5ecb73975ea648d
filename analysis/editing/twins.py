"""Models whose relation to another is known: the same function in another basis, and the same model cut short.

What transfers between two models can only be judged where the truth is known; these are that. Numpy on safetensors.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy as safetensors_numpy
from numpy.typing import NDArray

from ...protos.errors import FailedPrecondition, InvalidArgument, NotFound, Unsupported

__all__ = ["rotated_twin", "truncated_twin"]

Floats = NDArray[np.float64]
_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Checkpoints of RMS norms before attention and MLP, and none behind: what a rotation of the stream commutes with."""
_READS = {
    "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
}
_WRITES = ("self_attn.o_proj", "mlp.down_proj")

_numpy: Any = safetensors_numpy  # not annotated


def rotated_twin(folder: str | Path, out: str | Path, *, seed: int = 0) -> Floats:
    """Write the same function with its residual stream rotated by a random orthogonal Q [d, d], which is given back.

    Gains of norms are folded into the matrices behind them, embeddings untied; then E Qᵀ, W_in Qᵀ, Q W_out, W_unembed Qᵀ.
    So h_twin = Q h at every place of the stream, and attention and MLPs are as they were inside. Weights in float32.
    Raises Unsupported for families other than llama's kind, FailedPrecondition where `out` is not empty.
    """
    config, weights = _read(Path(folder))
    n, width = int(config["num_hidden_layers"]), int(config["hidden_size"])
    rng = np.random.default_rng(seed)
    q: Floats = np.linalg.qr(rng.normal(size=(width, width)))[0]
    embed = weights["model.embed_tokens.weight"].astype(np.float64)
    unembed = weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).astype(np.float64)
    new: dict[str, Any] = dict(weights)
    new["model.embed_tokens.weight"] = embed @ q.T
    new["lm_head.weight"] = (unembed * weights["model.norm.weight"].astype(np.float64)) @ q.T
    new["model.norm.weight"] = np.ones(width)
    for layer in range(n):
        at = f"model.layers.{layer}."
        for norm, readers in _READS.items():
            gain = weights[f"{at}{norm}.weight"].astype(np.float64)
            new[f"{at}{norm}.weight"] = np.ones(width)
            for name in readers:
                new[f"{at}{name}.weight"] = (weights[f"{at}{name}.weight"].astype(np.float64) * gain) @ q.T
        for name in _WRITES:
            new[f"{at}{name}.weight"] = q @ weights[f"{at}{name}.weight"].astype(np.float64)
            if f"{at}{name}.bias" in weights:
                new[f"{at}{name}.bias"] = q @ weights[f"{at}{name}.bias"].astype(np.float64)
    _write(Path(folder), Path(out), {**config, "tie_word_embeddings": False, **_plain()}, new)
    return q


def truncated_twin(folder: str | Path, out: str | Path, n_layers: int) -> None:
    """Write the model with its first `n_layers` layers only, everything else as it is: a really different target.

    Raises as `rotated_twin`, and InvalidArgument for a count that is not below the model's own.
    """
    config, weights = _read(Path(folder))
    n = int(config["num_hidden_layers"])
    if not 1 <= n_layers < n:
        raise InvalidArgument(f"n_layers must be in 1 … {n - 1} for a model of {n} layers, got {n_layers}")
    kept = {k: v for k, v in weights.items() if not k.startswith("model.layers.") or int(k.split(".")[2]) < n_layers}
    config = {**config, "num_hidden_layers": n_layers, **_plain()}
    kinds: Any = config.get("layer_types")
    if isinstance(kinds, list):
        config["layer_types"] = kinds[:n_layers]
    _write(Path(folder), Path(out), config, kept)


def _plain() -> dict[str, Any]:
    return {"torch_dtype": "float32", "dtype": "float32"}


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    if not (folder / "config.json").is_file():
        raise NotFound(f"{folder} is no folder of a checkpoint: it has no config.json")
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    if config.get("model_type") not in _FAMILIES or config.get("quantization_config") or config.get("quantization"):
        raise Unsupported(
            f"twins are made of plain {', '.join(_FAMILIES)} checkpoints (RMS norms before attention and MLP, none behind), "
            f"not of {config.get('model_type')!r}"
        )
    weights: dict[str, NDArray[Any]] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        weights |= _numpy.load_file(path)
    if "model.embed_tokens.weight" not in weights:
        raise NotFound(f"{folder} has no weights in model*.safetensors")
    return config, weights


def _write(folder: Path, out: Path, config: dict[str, Any], weights: dict[str, Any]) -> None:
    if out.exists() and any(out.iterdir()):
        raise FailedPrecondition(f"{out} is not empty; give a folder that is not there yet")
    out.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_file() and path.name != "config.json" and ".safetensors" not in path.name:
            shutil.copy(path, out / path.name)
    (out / "config.json").write_text(json.dumps(config, indent=2))
    arrays = {name: np.ascontiguousarray(value, dtype=np.float32) for name, value in weights.items()}
    _numpy.save_file(arrays, out / "model.safetensors", metadata={"format": "pt"})
