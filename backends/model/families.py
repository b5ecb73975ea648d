"""What each engine is known to get right. A smaller true table beats a larger one."""

from __future__ import annotations

from typing import Any

__all__ = ["generation_note", "run_only_sites"]

PROVEN: dict[str, frozenset[str]] = {
    "torch": frozenset(
        {"llama", "mistral", "qwen2", "qwen3", "smollm3", "gpt2", "gemma2", "gemma3_text", "phi3", "gpt_oss"}
    ),
    "mlx": frozenset(
        {"llama", "mistral", "qwen2", "qwen3", "smollm3", "gpt2", "gemma2", "gemma3_text", "phi3", "gpt_oss"}
    ),
}
"""Backend → model types whose generation equals teacher forcing in tests/parity."""


def generation_note(backend: str, model_type: str) -> str:
    """Why generation is refused, or empty."""
    if model_type in PROVEN[backend]:
        return ""
    return f"generation with {model_type} on {backend} has not been proven equal to the plain forward; use runs"


def run_only_sites(backend: str, config: Any) -> dict[str, str]:
    """Sites that generation cannot offer, with the reason."""
    if backend == "mlx":
        return {}  # its caches are ours: every layer keeps all keys in order, and a window is a mask
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        note = "the sliding-window cache's key order is not proven; use a run"
        return {"attn_scores": note, "attn_probs": note}
    return {}
