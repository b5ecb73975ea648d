"""How much each section does, and how often."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["QUICK", "Sizes"]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The full sizes, which the recorded figures have."""

    rounds: int = 5
    n_new: int = 64
    """Tokens that each generation brings."""
    n_steady: int = 256
    """The same where only the steady state is to count, and not the arrival of eight requests one after the other."""
    mlx_n_new: int = 16
    """The same on MLX, whose bfloat16 is slow on CPUs."""
    mlx_rounds: int = 3
    n_prompt: int = 200
    """Tokens of each captured prompt."""
    repeats: int = 4
    """Requests, one after the other, of each caller in a round of prompt captures."""
    wire_repeats: int = 20
    """Tensors, one after the other, in a round of the wire."""
    memory_tokens: int = 2000
    analysis_rounds: int = 3
    """Of patching grids and graphs, which take a minute each."""
    peer_python: str = ""
    """An interpreter that has interp-engine; empty: one is made in build/bench."""


QUICK = Sizes(
    rounds=1,
    n_new=8,
    n_steady=12,
    mlx_n_new=4,
    mlx_rounds=1,
    n_prompt=50,
    repeats=1,
    wire_repeats=3,
    memory_tokens=200,
    analysis_rounds=1,
)
"""To see that everything runs; its figures say little."""
