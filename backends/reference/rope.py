"""Rotary position embeddings: each pair of coordinates turns by position × frequency."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ...protos.errors import Unsupported
from ...protos.tensors import Array
from .config import Config

__all__ = ["Rope"]


@dataclass(frozen=True, slots=True, eq=False)
class Rope:
    """Turns coordinate i with coordinate i + n, n the number of frequencies; coordinates from 2n on stay."""

    frequencies: Array
    """[n], radians a position."""
    scale: float = 1.0
    """Multiplies what turns (yarn, longrope)."""
    longest: int | None = None
    """Positions for which the frequencies hold (longrope); None: all."""

    def __call__(self, x: Array) -> Array:
        """x: [pos, head, d_head], row 0 at position 0."""
        if self.longest is not None and len(x) > self.longest:
            raise Unsupported(
                f"longrope is defined here up to the original length of {self.longest}, got {len(x)} tokens"
            )
        n = len(self.frequencies)
        angles = np.arange(len(x))[:, None, None] * self.frequencies  # [pos, 1, n]
        cos, sin = (self.scale * np.cos(angles)).astype(x.dtype), (self.scale * np.sin(angles)).astype(x.dtype)
        first, second, rest = x[..., :n], x[..., n : 2 * n], x[..., 2 * n :]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)

    @staticmethod
    def of(settings: Config, d_head: int) -> Rope:
        """From a config's rotary settings: `rope_theta`, `rope_type`, and what the type needs.

        Raises Unsupported for a type that is not defined here.
        """
        width = int(d_head * settings.get("partial_rotary_factor", 1.0))
        theta = float(settings["rope_theta"])
        plain = theta ** (-np.arange(0, width, 2) / width)
        kind = settings.get("rope_type") or settings.get("type") or "default"
        if kind == "default":
            return Rope(plain)
        if kind == "linear":
            return Rope(plain / settings["factor"])
        if kind == "llama3":
            return Rope(_llama3(plain, settings))
        if kind == "yarn":
            return Rope(_yarn(plain, settings, width, theta), _yarn_scale(settings))
        if kind == "longrope":
            short, original = np.array(settings["short_factor"]), int(settings["original_max_position_embeddings"])
            return Rope(plain / short, _longrope_scale(settings, original), original)
        raise Unsupported(f"rope_type {kind!r} is not defined here; allowed: default, linear, llama3, yarn, longrope")


def _llama3(plain: Array, settings: Config) -> Array:
    """Long waves slow down by `factor`, short ones stay, those between blend."""
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    turns = settings["original_max_position_embeddings"] * plain / (2 * math.pi)  # over the original context
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return keep * plain + (1 - keep) * plain / settings["factor"]


def _yarn(plain: Array, settings: Config, width: int, theta: float) -> Array:
    """The first coordinates stay, the last slow down by `factor`, a linear ramp lies between."""
    context = settings["original_max_position_embeddings"]

    def coordinate(turns: float) -> float:
        """The (fractional) coordinate that turns so often over the original context."""
        return width * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    start, stop = coordinate(settings.get("beta_fast") or 32), coordinate(settings.get("beta_slow") or 1)
    if settings.get("truncate", True):
        start, stop = math.floor(start), math.ceil(stop)
    start, stop = max(start, 0), min(stop, width - 1)
    slow = np.clip((np.arange(width // 2) - start) / (stop - start or 0.001), 0.0, 1.0)
    return slow * plain / settings["factor"] + (1 - slow) * plain


def _longrope_scale(settings: Config, original: int) -> float:
    """Of the original length as of the long ones: it follows from how much longer the model's context was made."""
    if settings.get("attention_factor") is not None:
        return float(settings["attention_factor"])
    growth = settings.get("factor") or settings["max_position_embeddings"] / original
    return 1.0 if growth <= 1 else math.sqrt(1 + math.log(growth) / math.log(original))


def _yarn_scale(settings: Config) -> float:
    if settings.get("attention_factor") is not None:
        return float(settings["attention_factor"])

    def growth(weight: float) -> float:
        return 0.1 * weight * math.log(settings["factor"]) + 1.0 if settings["factor"] > 1 else 1.0

    mscale, all_dim = settings.get("mscale"), settings.get("mscale_all_dim")
    return growth(mscale) / growth(all_dim) if mscale and all_dim else growth(1.0)
