"""An SAE as sae-lens saves it (cfg.json, sae_weights.safetensors), read, checked and refused with the reason."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors
from safetensors import SafetensorError

from ...protos.errors import InvalidArgument, NotFound
from ...protos.model import ModelInfo
from ...protos.sites import ATTENTION_SITES, HEAD_SITES, Site, SitePattern
from ...protos.tensors import FLOAT_DTYPES, Array, Tensor, numpy_dtype
from ..model.footprint import check_free
from .config import as_of_version_6, check_config, dtype_of, k_of, metadata_of
from .sae import Sae

__all__ = ["CONFIG_FILE", "WEIGHTS_FILE", "SaeSource", "read_folder", "source_of_files"]

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae_weights.safetensors"
MAX_CONFIG_BYTES = 1 << 20
_PICKLES = (".pt", ".pth", ".pkl", ".bin", ".ckpt")
_ENCODERS = {
    "standard": ("b_enc",),
    "topk": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "gated": ("b_gate", "b_mag", "r_mag"),
}
READING = 2.5
"""Bytes of memory to a byte of a weights file while it is read: the file, its tensors, what is found out about them."""
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_st: Any = safetensors  # not annotated


@dataclass(frozen=True, slots=True)
class SaeSource:
    """An SAE's two files, not yet put on a site."""

    config: dict[str, Any]
    """cfg.json, as versions of sae-lens from 6 on say it."""
    config_text: bytes
    """The same as it came."""
    weights: bytes
    what: str
    """How messages call it."""

    @property
    def hash(self) -> str:
        """SHA-256 of the weights file."""
        return hashlib.sha256(self.weights).hexdigest()

    def load(self, name: str, site: str, dtype: str, info: ModelInfo, max_bytes: int | None = None) -> Sae:
        """Put it on a site of a model (empty: the one its config names). Raises InvalidArgument with the reason.

        `max_bytes`: of the weights in `dtype`.
        """
        found = _site(site or _own_site(self.config, self.what), info, self.what)
        architecture = str(self.config.get("architecture"))
        if architecture not in _ENCODERS:
            raise InvalidArgument(
                f"{self.what} has architecture {architecture!r}; allowed: {', '.join(_ENCODERS)} "
                "(BatchTopK and Matryoshka SAEs are saved as jumprelu by sae-lens's save_inference_model)"
            )
        check_config(self.config, architecture, self.what)
        arrays = _weights(self.weights, self.what)
        d_in, d_sae = _sizes(arrays, self.config, self.what)
        wanted = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
        wanted |= dict.fromkeys(_ENCODERS[architecture], (d_sae,))
        _without_scale(arrays, self.what)
        _check_arrays(arrays, wanted, self.what)
        _check_width(found, d_in, self.config, info, self.what)
        chosen = _dtype(dtype, self.config, arrays["W_enc"], self.what)
        if chosen == "float64" and info.backend == "mlx" and "gpu" in info.device:
            raise InvalidArgument(f"{self.what} cannot work in float64 on {info.device}; load it with dtype='float32'")
        _check_size({key: arrays[key] for key in wanted}, chosen, max_bytes, self.what)
        with np.errstate(over="ignore"):
            gated = np.exp(arrays["r_mag"].astype(np.float64)) if architecture == "gated" else None
            kept = {key: arrays.pop(key).astype(numpy_dtype(chosen), copy=False) for key in wanted}
            if gated is not None:
                kept["scale_mag"] = gated.astype(numpy_dtype(chosen))
                del kept["r_mag"]
        rescale = bool(self.config.get("rescale_acts_by_decoder_norm", False))
        _check_kept(kept, chosen, self.what, rescale=rescale)
        return Sae(
            name=name,
            site=found,
            architecture=architecture,
            d_in=d_in,
            d_sae=d_sae,
            k=k_of(self.config, d_sae, self.what) if architecture == "topk" else 0,
            dtype=chosen,
            subtract=bool(self.config.get("apply_b_dec_to_input", True)),
            normalize=str(self.config.get("normalize_activations") or "none"),
            rescale=rescale,
            arrays=kept,
            own_site=_trained_at(self.config, self.what),
            hash=self.hash,
        )


def read_folder(folder: Path, max_bytes: int) -> SaeSource:
    """An SAE's folder. Raises NotFound, InvalidArgument for what is no SAE in the sae-lens format, FailedPrecondition for one
    that memory cannot hold.
    """
    if not folder.is_dir():
        kind = "a file, not a folder" if folder.exists() else "not there"
        raise NotFound(f"the SAE folder {folder} is {kind} on the server; give the folder with cfg.json in it")
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        pickled = f"; {', '.join(pickles[:3])} may be a pickle, which is never opened" if pickles else ""
        raise InvalidArgument(
            f"{folder} has no {' and no '.join(missing)}{pickled}; save the SAE with sae-lens (save_model), "
            f"which writes {CONFIG_FILE} and {WEIGHTS_FILE}"
        )
    size = (folder / WEIGHTS_FILE).stat().st_size
    if size > max_bytes:
        raise InvalidArgument(f"{folder / WEIGHTS_FILE} has {size:,} bytes; at most {max_bytes:,} are allowed")
    check_free(READING * size, f"reading the SAE in {folder.name}")
    return source_of_files((folder / CONFIG_FILE).read_bytes(), (folder / WEIGHTS_FILE).read_bytes(), str(folder))


def source_of_files(config: bytes, weights: bytes, what: str) -> SaeSource:
    """The two files as bytes. Raises InvalidArgument when the config is no JSON object."""
    try:
        if len(config) > MAX_CONFIG_BYTES:
            raise ValueError(f"{len(config):,} bytes, more than a config has")
        parsed: Any = json.loads(config)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{CONFIG_FILE} of {what} is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise InvalidArgument(f"{CONFIG_FILE} of {what} must hold an object, not {type(parsed).__name__}")
    return SaeSource(as_of_version_6(cast("dict[str, Any]", parsed), what), config, weights, what)


def _own_site(config: dict[str, Any], what: str) -> str:
    name = metadata_of(config).get("hook_name")
    if not isinstance(name, str) or not name:
        raise InvalidArgument(f"{what} does not say where it reads (metadata.hook_name); give a site: 'resid_post.15'")
    return name


def _trained_at(config: dict[str, Any], what: str) -> str:
    """The site that a config names, as we write it; empty where it names none of ours."""
    try:
        return str(SitePattern.parse(_own_site(config, what)))
    except InvalidArgument:
        return ""


def _site(name: str, info: ModelInfo, what: str) -> Site:
    sites = SitePattern.parse(name).expand(info.n_layers)
    if len(sites) != 1:
        raise InvalidArgument(f"{what} can be loaded onto one site, not {name!r}; load it once a layer")
    site = sites[0]
    offered = info.site(site.name)
    if site.name in (*ATTENTION_SITES, "module") or offered is None or "latents" not in offered.edits:
        allowed = ", ".join(entry.name for entry in info.sites if "latents" in entry.edits)
        raise InvalidArgument(f"{what}: no SAE can be loaded onto {site}; allowed kinds of site: {allowed}")
    if offered.layers is not None and site.layer not in offered.layers:
        raise InvalidArgument(f"{what}: {site.name} does not exist at layer {site.layer}")
    return site


def _weights(data: bytes, what: str) -> dict[str, Array]:
    try:
        found = dict(_st.deserialize(data))
    except (SafetensorError, ValueError, OverflowError) as error:
        raise InvalidArgument(
            f"{WEIGHTS_FILE} of {what} is no safetensors file ({error}); pickles are never opened: save it with sae-lens"
        ) from None
    arrays: dict[str, Array] = {}
    for key, entry in found.items():
        if entry["dtype"] not in _DTYPES:
            raise InvalidArgument(f"{what}: {key} has dtype {entry['dtype']}; allowed: {', '.join(FLOAT_DTYPES)}")
        arrays[key] = Tensor(_DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data"]).numpy()
    return arrays


def _sizes(arrays: dict[str, Array], config: dict[str, Any], what: str) -> tuple[int, int]:
    if "W_enc" not in arrays or arrays["W_enc"].ndim != 2:
        raise InvalidArgument(
            f"{what} has no matrix W_enc [d_in, d_sae]; it has {', '.join(sorted(arrays)) or 'nothing'}"
        )
    d_in, d_sae = arrays["W_enc"].shape
    if not d_in or not d_sae:
        raise InvalidArgument(f"{what} is empty: its W_enc is [{d_in}, {d_sae}]")
    told = config.get("d_in", d_in), config.get("d_sae", d_sae)
    if told != (d_in, d_sae):
        raise InvalidArgument(f"{what}: its config says d_in, d_sae = {told}, its W_enc is [{d_in}, {d_sae}]")
    return d_in, d_sae


def _without_scale(arrays: dict[str, Array], what: str) -> None:
    """sae-lens wrote a `scaling_factor` of ones for a time, and takes it away again as it loads."""
    found = arrays.pop("scaling_factor", None)
    if found is not None and not np.allclose(found.astype(np.float64), 1.0):
        raise InvalidArgument(
            f"{what} has a finetuned scaling_factor of its latents, which sae-lens from version 6 on does not load either; "
            "multiply W_dec's rows by it, and save the SAE without"
        )


def _check_arrays(arrays: dict[str, Array], wanted: dict[str, tuple[int, ...]], what: str) -> None:
    for key, shape in wanted.items():
        if key not in arrays:
            raise InvalidArgument(f"{what} has no {key}; an SAE of its architecture has {', '.join(wanted)}")
        if arrays[key].shape != shape:
            raise InvalidArgument(f"{what}: {key} has shape {list(arrays[key].shape)}, it must be {list(shape)}")
        if not np.isfinite(arrays[key]).all():
            raise InvalidArgument(
                f"{what}: {key} holds NaN or infinite numbers; its training failed, or its file is damaged"
            )
    surplus = [key for key in arrays if key not in wanted]
    if surplus:
        raise InvalidArgument(
            f"{what} has weights that its architecture does not use ({', '.join(surplus)}); its latents would be wrong "
            "without them"
        )


def _check_size(arrays: dict[str, Array], dtype: str, max_bytes: int | None, what: str) -> None:
    n_bytes = sum(array.size for array in arrays.values()) * numpy_dtype(dtype).itemsize
    if max_bytes is not None and n_bytes > max_bytes:
        raise InvalidArgument(f"{what} takes {n_bytes:,} bytes in {dtype}; at most {max_bytes:,} fit")
    if n_bytes > sum(array.nbytes for array in arrays.values()):
        check_free(n_bytes, f"{what} in {dtype}")


def _check_kept(kept: dict[str, Array], dtype: str, what: str, *, rescale: bool) -> None:
    for key, array in kept.items():
        if not np.isfinite(array).all():
            raise InvalidArgument(f"{what}: {key} holds numbers beyond {dtype}; load it in another dtype")
    if rescale and not kept["W_dec"].astype(np.float32).any(axis=1).all():
        raise InvalidArgument(f"{what} rescales latents by their decoder norms, and some of these are zero")


def _check_width(site: Site, d_in: int, config: dict[str, Any], info: ModelInfo, what: str) -> None:
    offered = info.site(site.name)
    assert offered is not None
    widths = offered.at(site.layer)
    width = int(np.prod(widths))
    if d_in != width:
        heads = f" ({widths[0]} heads of {widths[1]})" if site.name in HEAD_SITES else ""
        raise InvalidArgument(f"{what} reads rows {d_in} wide, {site} of {info.id} is {width} wide{heads}")
    if config.get("reshape_activations") not in (None, "none", "hook_z"):
        raise InvalidArgument(f"{what}: reshape_activations {config['reshape_activations']!r}; allowed: none, hook_z")
    if config.get("reshape_activations") == "hook_z" and site.name not in HEAD_SITES:
        raise InvalidArgument(f"{what} reads the heads' outputs (hook_z); load it onto z, not {site}")


def _dtype(asked: str, config: dict[str, Any], w_enc: Array, what: str) -> str:
    if asked == "auto":
        return dtype_of(config, str(w_enc.dtype), what)
    if asked not in FLOAT_DTYPES:
        raise InvalidArgument(f"{what}: dtype {asked!r}; allowed: auto, {', '.join(FLOAT_DTYPES)}")
    return asked
