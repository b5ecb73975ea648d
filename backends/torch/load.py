"""Loads a checkpoint folder as a transformers model, ready for our attention and hooks."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ...protos.errors import FailedPrecondition, InvalidArgument
from ..model.footprint import free_bytes
from ..model.sites import family_of
from .linear import use_in
from .ops import torch_dtype

__all__ = ["body_of", "choose_device", "cuda_free_bytes", "load_model"]

_FOLLOWS_FROM_CONFIG = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$")
"""What old checkpoints store though it follows from the config."""


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


def load_model(folder: Path, dtype: str, device: torch.device, *, cache_bytes: int = 0) -> Any:
    """The model in eval mode. `dtype` is a wire name or "auto" (the checkpoint's own).

    `cache_bytes`: of memory that the model's KV cache will take, and no copy of weights may.
    """
    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if getattr(config.get_text_config(), "use_bidirectional_attention", None):
        raise InvalidArgument(
            f"the checkpoint in {folder} attends in both directions (use_bidirectional_attention), as embedding models do; "
            "probewire serves causal language models only"
        )
    kwargs: dict[str, Any] = {"dtype": "auto" if dtype == "auto" else torch_dtype(dtype)}
    if torch.float64 in (kwargs["dtype"], config.get_text_config().dtype):
        kwargs["experts_implementation"] = "eager"  # the usual one, a grouped product, knows no float64
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded: Any = AutoModelForCausalLM.from_pretrained(
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
    unexpected = sorted(name for name in report["unexpected_keys"] if not _FOLLOWS_FROM_CONFIG.search(name))
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
