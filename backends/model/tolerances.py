"""How far apart two ways of computing one thing may be, by dtype."""

from __future__ import annotations

__all__ = ["ENGINE_TOLERANCE"]

ENGINE_TOLERANCE = {"float32": 1e-3, "float64": 1e-3, "float16": 5e-2, "bfloat16": 3e-1}
"""Relative error of a generation that still counts as rounding; the faults seen were of 0.5 and more."""
