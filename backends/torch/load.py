"""Loads a checkpoint folder as a transformers model, ready for our attention and hooks."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightConverter
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from ...protos.errors import FailedPrecondition, InvalidArgument
from ..checkpoints.text_config import text_config
from ..checkpoints.tower import Tower
from ..model.footprint import free_bytes
from ..model.sites import family_of
from ..model.weights import CheckpointWeights
from .linear import use_in
from .ops import torch_dtype

__all__ = ["body_of", "choose_device", "class_of", "cuda_free_bytes", "load_model"]

_FOLLOWS_FROM_CONFIG = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$")
"""What old checkpoints store though it follows from the config."""
_CAUSAL = (None, False, "vision")
"""Pictures alone are read in both directions by the last of these."""


def choose_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises FailedPrecondition for a device that is not here."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InvalidArgument(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise FailedPrecondition(
            f"device {device} was asked for, but this machine has no usable CUDA; use --device cpu"
        )
    return chosen


def cuda_free_bytes(device: str) -> int | None:
    """Free memory of the GPU that a device name means; None for the CPU."""
    chosen = choose_device(device)
    return torch.cuda.mem_get_info(chosen)[0] if chosen.type == "cuda" else None


class _LeftOut(logging.Filter):
    """Keeps back the library's long report of weights that a tower leaves out on purpose."""

    def filter(self, record: logging.LogRecord) -> bool:
        told = record.getMessage()
        return "LOAD REPORT" not in told or any(fault in told for fault in ("MISSING", "MISMATCH", "CONVERSION"))


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


def load_model(folder: Path, dtype: str, device: torch.device, *, cache_bytes: int = 0) -> Any:
    """The model in eval mode. `dtype` is a wire name or "auto" (the checkpoint's own).

    `cache_bytes`: of memory that the model's KV cache will take, and no copy of weights may.
    """
    tower = CheckpointWeights(folder).tower
    config: Any = text_config(folder)
    if getattr(config.get_text_config(), "use_bidirectional_attention", None) not in _CAUSAL:
        raise InvalidArgument(
            f"the checkpoint in {folder} attends in both directions (use_bidirectional_attention), as embedding models do; "
            "probewire serves causal language models only"
        )
    kwargs: dict[str, Any] = {"dtype": "auto" if dtype == "auto" else torch_dtype(dtype)}
    if torch.float64 in (kwargs["dtype"], config.get_text_config().dtype):
        kwargs["experts_implementation"] = "eager"  # the usual one, a grouped product, knows no float64
    if tower is not None:
        kwargs["key_mapping"] = {f"^{re.escape(old)}": new for old, new in tower.prefixes.items()}
    with warnings.catch_warnings(), _quiet(tower):
        warnings.simplefilter("ignore")
        loaded: Any = class_of(config, tower).from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation="eager",
            output_loading_info=True,
            **kwargs,
        )
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would leave them random
        raise InvalidArgument(
            f"the checkpoint in {folder} lacks {len(missing)} weights of its architecture, for example {missing[:3]}"
        )
    unexpected = sorted(
        name
        for name in report["unexpected_keys"]
        if not _FOLLOWS_FROM_CONFIG.search(name) and not (tower and tower.leaves_out(name))
    )
    if unexpected:  # transformers would leave them out without a word
        raise InvalidArgument(
            f"the checkpoint in {folder} holds {len(unexpected)} weights that {config.model_type} has no place for under "
            f"its config.json, for example {unexpected[:3]}; take the config.json that came with them"
        )
    if family_of(config.get_text_config().model_type) is not None:
        # "sdpa" is where our dispatcher sits; set directly, because families that refuse the stock sdpa (softcap, sinks)
        # get our own attention there. Classes that we do not know stay eager: many build no mask for sdpa, or drop sinks.
        model.config._attn_implementation_internal = "sdpa"
    model = model.eval().requires_grad_(False).to(device)
    if device.type == "cpu":
        free = free_bytes()
        use_in(model, None if free is None else free - cache_bytes)
    return model


def body_of(model: Any) -> Any:
    """What gives the output head its rows: the library's base model, or, where its name for that is of another class
    (llama4's text model), the one model within."""
    inside = [module for module in model.children() if isinstance(module, PreTrainedModel)]
    return inside[0] if model.base_model is model and len(inside) == 1 else model.base_model
