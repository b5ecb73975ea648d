"""Small random SAEs in the sae-lens on-disk format, written without sae-lens (which takes seconds to import)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

__all__ = ["ARCHITECTURES", "write_identity", "write_sae"]

Array = np.ndarray[Any, Any]

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "standard": {"architecture": "standard"},
    "topk": {"architecture": "topk", "k": 6},
    "topk rescaled": {"architecture": "topk", "k": 6, "rescale_acts_by_decoder_norm": True},
    "jumprelu": {"architecture": "jumprelu"},
    "gated": {"architecture": "gated"},
    "layer norm": {"architecture": "standard", "normalize_activations": "layer_norm"},
    "norm rescaled": {"architecture": "jumprelu", "normalize_activations": "constant_norm_rescale"},
    "bias kept": {"architecture": "topk", "k": 5, "apply_b_dec_to_input": False},
}
"""Every kind that the server knows, and every option that changes its numbers."""
_BIASES = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
}


def write_sae(
    folder: Path,
    kind: str = "topk",
    *,
    d_in: int = 64,
    d_sae: int = 96,
    site: str = "blocks.1.hook_resid_post",
    seed: int = 0,
    dtype: Any = np.float32,
    **config: Any,
) -> Path:
    """An SAE's folder; `config` overrides what the kind says."""
    options = {**ARCHITECTURES[kind], **config}
    rng = np.random.default_rng([seed, len(kind)])
    arrays = {
        "W_enc": rng.standard_normal((d_in, d_sae)) / 8,
        "W_dec": rng.standard_normal((d_sae, d_in)) / 6,
        "b_dec": rng.standard_normal(d_in) / 5,
    }
    arrays |= {name: rng.standard_normal(d_sae) / 10 for name in _BIASES[options["architecture"]]}
    if "threshold" in arrays:
        arrays["threshold"] = np.abs(arrays["threshold"]) + 0.1
    return _write(folder, {name: array.astype(dtype) for name, array in arrays.items()}, options, site)


def write_identity(folder: Path, *, d_in: int = 64, site: str = "resid_post.1") -> Path:
    """An SAE that gives back what it gets, bit for bit: a latent for each sign of each coordinate."""
    eye = np.eye(d_in, dtype=np.float32)
    arrays = {
        "W_enc": np.concatenate([eye, -eye], axis=1),
        "W_dec": np.concatenate([eye, -eye]),
        "b_enc": np.zeros(2 * d_in, dtype=np.float32),
        "b_dec": np.zeros(d_in, dtype=np.float32),
    }
    return _write(folder, arrays, {"architecture": "standard"}, site)


def _write(folder: Path, arrays: dict[str, Array], options: dict[str, Any], site: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    d_in, d_sae = arrays["W_enc"].shape
    metadata = {"hook_name": site, "sae_lens_version": "6.54.12"}
    told = {"d_in": d_in, "d_sae": d_sae, "dtype": "float32", "device": "cpu", "metadata": metadata, **options}
    (folder / "cfg.json").write_text(json.dumps(told))
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "sae_weights.safetensors")
    return folder
