"""What a config says of a model's layers, and what follows for the engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...protos.sites import ATTENTION_SITES
from ..checkpoints.shrunk import WINDOWS
from .anatomy.derive import Anatomy

__all__ = ["BODIES", "batching_note", "kernel_of", "masked_sites", "run_only_sites", "window_in"]

BODIES = {
    "gpt2": "transformer",
    "gpt_bigcode": "transformer",
    "gpt_neox": "gpt_neox",
    "mamba": "backbone",
    "mamba2": "backbone",
}
"""What transformers calls the body of a model where that is not `model`: raw modules have the checkpoint's names on MLX too."""


def batching_note(anatomy: Anatomy | None, config: Any) -> str:
    """Why sequences of a model cannot share a forward, or empty: the check of the engine decides then."""
    if anatomy is None:
        return f"how {config.model_type} is built is not known"
    if anatomy.batching:
        return anatomy.batching
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds or getattr(config, "attention_chunk_size", None):
        return f"layers of {', '.join(sorted(kinds)) or 'chunked attention'} are not batched"
    windows = {block.window for block in anatomy.blocks} - {None}
    if has_window(config) and windows != {config.sliding_window}:
        return "the model's attention does not say which layers have a window"
    return ""


def kernel_of(config: Any, *, eager: bool) -> str:
    """The attention kernel of plain requests; `none` for a model whose config names no heads, such as Mamba."""
    if not getattr(config, "num_attention_heads", None):
        return "none"
    return "eager" if eager else "sdpa"


def has_window(config: Any) -> bool:
    """Whether some layer sees only the last tokens."""
    return window_in(
        {name: getattr(config, name, None) for name in ("sliding_window", "use_sliding_window", "layer_types")}
    )


def window_in(config: Mapping[str, Any]) -> bool:
    """The same of a config's fields."""
    kinds = config.get("layer_types")
    if any(config.get(name) for name in WINDOWS[1:]):
        return True
    if not config.get("sliding_window") or config.get("use_sliding_window") is False:
        return False
    return not kinds or any("sliding" in str(kind) for kind in kinds)


def masked_sites(config: Any) -> dict[str, str]:
    """Sites whose masks are not known here, with the reason: a short proof would not reach a chunk's end."""
    if not getattr(config, "attention_chunk_size", None):
        return {}
    return dict.fromkeys(ATTENTION_SITES, "attention in chunks has a mask that is not known here; read z or attn_out")


def run_only_sites(backend: str, config: Any) -> dict[str, str]:
    """Sites that generation cannot offer, with the reason."""
    if backend == "mlx":
        return {}  # its caches are ours: every layer keeps all keys in order, and a window is a mask
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        note = "the sliding-window cache's key order is not proven; use a run"
        return {"attn_scores": note, "attn_probs": note}
    return {}
