"""Loads a checkpoint folder as a transformers model, ready for our attention and hooks."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from ...protos.errors import FailedPrecondition, InvalidArgument
from ..checkpoints.quantised import Scheme, check_runnable, scheme_of
from ..checkpoints.quantised.at_load import AtLoad, check_plain
from ..checkpoints.quantised.scheme import way_out
from ..checkpoints.refusals import lacks, no_place, not_causal, wrong_shape
from ..checkpoints.text_config import text_config
from ..checkpoints.tower import Tower
from ..model.footprint import free_bytes
from ..model.weights import CheckpointWeights
from .devices.placed import PlacedLayers, loading_over
from .linear import use_in
from .ops import torch_dtype
from .quantised import quantise

__all__ = ["Loaded", "body_of", "check_complete", "class_of", "load_model"]

_FOLLOWS_FROM_CONFIG = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$")
"""What old checkpoints store though it follows from the config."""
_CAUSAL = (None, False, "vision")
"""Pictures alone are read in both directions by the last of these."""
MOST_OF_AN_ERROR = 300
"""Letters of what a library says."""


_UNPACKED = ("mxfp4", "fp8")
"""Formats that are written out at load, on every device: their kernels round activations too, and have no derivative."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, and what is special about its weights."""

    model: Any
    at_load: AtLoad | None = None
    """What was quantised here."""
    kept: str = ""
    """The format of weights that another library computes with as they are packed."""


class _LeftOut(logging.Filter):
    """Keeps back the library's long report of weights that a tower leaves out on purpose."""

    def filter(self, record: logging.LogRecord) -> bool:
        told = record.getMessage()
        return "LOAD REPORT" not in told or any(fault in told for fault in ("MISSING", "MISMATCH", "CONVERSION"))


class _NoReport(logging.Filter):
    """Keeps back that report whatever it says: it is told in our words."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()


@contextmanager
def _quiet(tower: Tower | None) -> Generator[None]:
    logger, kept_back = logging.getLogger("transformers.modeling_utils"), _LeftOut()
    if tower is not None:
        logger.addFilter(kept_back)
    try:
        yield
    finally:
        logger.removeFilter(kept_back)


def class_of(config: Any, tower: Tower | None) -> Any:
    """Whose `from_pretrained` loads it: of a tower whose weights the library turns for the whole model alone, a class that
    turns them too."""
    mapping: list[Any] = get_checkpoint_conversion_mapping(tower.wrapper) or [] if tower is not None else []
    turns: list[Any] = [one for one in mapping if isinstance(one, WeightConverter)]
    if tower is None or not turns:
        return AutoModelForCausalLM
    known: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    base: Any = known[type(config)]
    made = type(f"{base.__name__}_{tower.wrapper}", (base,), {})
    register_checkpoint_conversion_mapping(made.__name__, turns, overwrite=True)
    return made


def load_model(
    folder: Path,
    dtype: str,
    device: torch.device,
    *,
    cache_bytes: int = 0,
    quantize: str = "",
    placed: PlacedLayers | None = None,
) -> Loaded:
    """The model in eval mode. `dtype` is a wire name or "auto" (the checkpoint's own).

    `cache_bytes`: of memory that the model's KV cache will take, and no copy of weights may. `placed`: of a model whose
    layers do not all lie on `device`.
    """
    scheme, tower = scheme_of(folder), CheckpointWeights(folder).tower
    check_runnable(scheme, folder, "torch")
    check_plain(scheme, quantize)
    config: Any = text_config(folder)
    if getattr(config.get_text_config(), "use_bidirectional_attention", None) not in _CAUSAL:
        raise InvalidArgument(
            f"the checkpoint in {folder} attends in both directions (use_bidirectional_attention), as embedding models do; "
            "probewire serves causal language models only"
        )
    if type(config) not in cast("Any", MODEL_FOR_CAUSAL_LM_MAPPING):
        raise not_causal(config.model_type, encoder_decoder=bool(getattr(config, "is_encoder_decoder", False)))
    kwargs: dict[str, Any] = {"dtype": "auto" if dtype == "auto" else torch_dtype(dtype)}
    if torch.float64 in (kwargs["dtype"], config.get_text_config().dtype):
        kwargs["experts_implementation"] = "eager"  # the usual one, a grouped product, knows no float64
    kwargs |= _renamed(tower)
    if scheme is not None and scheme.method == "fp8":
        _check_whole_blocks(folder, scheme)
    quantised = bool(quantize) or scheme is not None
    with loading_over(None if placed is None else placed.device_map(config, quantised=quantised)) as over:
        model, report = _loaded(folder, config, scheme, tower, {**kwargs, **over})
    if scheme is not None and scheme.method == "fp8":
        _one_dtype(model, kwargs["dtype"] if dtype != "auto" else config.get_text_config().dtype)
    _refuse_holes(folder, report)
    unexpected = sorted(
        name
        for name in report["unexpected_keys"]
        if not _FOLLOWS_FROM_CONFIG.search(name) and not (tower and tower.leaves_out(name))
    )
    if unexpected:  # transformers would leave them out without a word
        raise no_place(folder, config.model_type, unexpected)
    model = model.eval().requires_grad_(False)
    if placed is not None:
        placed.settle(model, body_of(model))
        return Loaded(model)
    at_load = quantise(model, quantize) if quantize else None
    kept = scheme.method if scheme is not None and scheme.method not in _UNPACKED else ""
    model = model.to(device)
    if device.type == "cpu":
        free = free_bytes()
        use_in(model, None if free is None else free - cache_bytes)
    return Loaded(model, at_load, kept)


def check_complete(folder: Path) -> None:
    """Raise InvalidArgument where a folder of plain weights lacks some, or has them in other shapes, as `load_model` would;
    no weight is read."""
    config, tower = text_config(folder), CheckpointWeights(folder).tower
    if type(config) not in cast("Any", MODEL_FOR_CAUSAL_LM_MAPPING):
        return
    logger, kept_back = logging.getLogger("transformers.modeling_utils"), _NoReport()
    logger.addFilter(kept_back)
    try:
        _, report = _loaded(folder, config, None, tower, {"device_map": "meta", **_renamed(tower)})
    finally:
        logger.removeFilter(kept_back)
    _refuse_holes(folder, report)


def _refuse_holes(folder: Path, report: dict[str, Any]) -> None:
    """transformers would leave random what is missing."""
    if misfits := sorted(report["mismatched_keys"]):
        raise wrong_shape(folder, *misfits[0], n=len(misfits))
    if missing := sorted(report["missing_keys"]):
        raise lacks(folder, missing)


def _renamed(tower: Tower | None) -> dict[str, Any]:
    """What tells the library that a tower's weights have other names in its files."""
    return {} if tower is None else {"key_mapping": {f"^{re.escape(old)}": new for old, new in tower.prefixes.items()}}


def body_of(model: Any) -> Any:
    """What gives the output head its rows: the library's base model, or, where its name for that is of another class
    (llama4's text model), the one model within."""
    inside = [module for module in model.children() if isinstance(module, PreTrainedModel)]
    return inside[0] if model.base_model is model and len(inside) == 1 else model.base_model


def _check_whole_blocks(folder: Path, scheme: Scheme) -> None:
    """Raise FailedPrecondition where the library would spread scales over other rows than they were made for: it divides
    a weight evenly by its number of scales."""
    for name, packed in CheckpointWeights(folder).packed.items():
        if scheme.block and any(n % size and n > size for n, size in zip(packed.shape[-2:], scheme.block, strict=True)):
            raise FailedPrecondition(
                f"{name} {list(packed.shape)} is stored in fp8 with blocks of {scheme.block[0]} x {scheme.block[1]} that do "
                "not divide it, which torch would unpack wrongly; use the mlx backend (MODEL@mlx)"
            )


def _one_dtype(model: Any, dtype: torch.dtype | None) -> None:
    """Bring what the library has left in another dtype than it was asked for to that one, as it does without quantisation."""
    wide = tuple(getattr(model, "_keep_in_fp32_modules", None) or ())
    for name, parameter in model.named_parameters():
        if dtype is not None and parameter.dtype != dtype and not any(part in name for part in wide):
            parameter.data = parameter.data.to(dtype)


def _loaded(
    folder: Path, config: Any, scheme: Scheme | None, tower: Tower | None, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The library's model and its report. Raises FailedPrecondition where a quantised one needs what is not here."""
    if scheme is not None and scheme.method in _UNPACKED:
        told: dict[str, Any] = json.loads(
            (folder / "config.json").read_text()
        )  # a tower's own config says nothing of it
        told = told.get("quantization_config") or told["text_config"]["quantization_config"]
        config.quantization_config = {**told, "dequantize": True}
    try:
        with warnings.catch_warnings(), _quiet(tower):
            warnings.simplefilter("ignore")
            return class_of(config, tower).from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                trust_remote_code=False,
                attn_implementation="eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # it is the report that names them
                **kwargs,
            )
    except (AttributeError, ImportError, RuntimeError, TypeError, ValueError) as error:
        if scheme is None or (scheme.method in _UNPACKED and not isinstance(error, ImportError)):
            raise
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:MOST_OF_AN_ERROR]}"
        fix = "install accelerate (pip install accelerate)" if scheme.method in _UNPACKED else way_out(scheme)
        raise FailedPrecondition(
            f"the checkpoint in {folder} is quantised by {scheme.method}, which torch cannot load here ({said}): {fix}"
        ) from error
