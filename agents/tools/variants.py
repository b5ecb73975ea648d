"""Variants that are loaded: changes of a model that requests can run with."""

from __future__ import annotations

from typing import Annotated, Any

from mcp.server.mcpserver import Context
from pydantic import Field

from ..boxes import Boxes, box_of
from .fields import Model

__all__ = ["list_variants", "load_variant", "unload_variant"]

Name = Annotated[str, Field(max_length=200)]
_TOLD = (
    "name",
    "version",
    "hash",
    "model",
    "owner",
    "shared",
    "method",
    "description",
    "weights",
    "max_rank",
    "n_hooks",
)


async def list_variants(ctx: Context[Boxes, Any]) -> dict[str, Any]:
    """Variants that you may use; name them in `generate` and `read_activations`."""
    found = await (await box_of(ctx)).variants()
    return {"variants": [_told(one) for one in found]}


async def load_variant(
    ctx: Context[Boxes, Any],
    source: Annotated[str, Field(max_length=500, description="A folder that the box reads, or a hub id.")],
    name: Name = "",
    model: Model = "",
) -> dict[str, Any]:
    """Load a variant from where the box itself may read."""
    found = await (await box_of(ctx)).load_variant(source, name=name, upload=False, model=model, progress=False)
    return _told(found)


async def unload_variant(ctx: Context[Boxes, Any], name: Name) -> dict[str, Any]:
    """Unload a variant of yours."""
    await (await box_of(ctx)).unload_variant(name)
    return {"unloaded": name}


def _told(info: Any) -> dict[str, Any]:
    return {field: getattr(info, field) for field in _TOLD}
