"""Which tools the MCP server offers, and which of them change the box."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from .tools.describe import describe, tokenize
from .tools.generate import generate, read_activations
from .tools.gradients import attribute
from .tools.patch import patch
from .tools.saes import latents, list_saes, load_sae, unload_sae
from .tools.steer import steer
from .tools.variants import list_variants, load_variant, unload_variant

__all__ = ["TOOLS", "ToolRow"]


@dataclass(frozen=True, slots=True)
class ToolRow:
    """A tool: its name, arguments and text are its function's."""

    call: Callable[..., Awaitable[dict[str, Any]]]
    changes: bool = False
    """What the box keeps is another after it; offered only where the operator says so, to keys whose role allows it."""


TOOLS = (
    *map(ToolRow, (describe, tokenize, generate, read_activations, steer, patch, attribute)),
    *map(ToolRow, (list_saes, latents, list_variants)),
    *(ToolRow(call, changes=True) for call in (load_sae, unload_sae, load_variant, unload_variant)),
)
"""The plain jobs of a box. Those of neuron studies get rows of their own here."""
