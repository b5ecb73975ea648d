"""Sparse autoencoders that are loaded, and which of their latents fire."""

from __future__ import annotations

from typing import Annotated, Any

from mcp.server.mcpserver import Context
from pydantic import Field

from ...clients import NotFound, capture
from ..answers import number
from ..boxes import Boxes, box_of
from .fields import Model, Prompt, as_input

__all__ = ["latents", "list_saes", "load_sae", "unload_sae"]

Name = Annotated[str, Field(max_length=200)]
_TOLD = ("name", "model", "site", "architecture", "d_sae", "hash", "shared", "owner")


async def list_saes(ctx: Context[Boxes, Any]) -> dict[str, Any]:
    """SAEs that you may use."""
    found = await (await box_of(ctx)).saes()
    return {"saes": [{name: getattr(sae, name) for name in _TOLD} for sae in found]}


async def latents(
    ctx: Context[Boxes, Any],
    prompt: Prompt,
    sae: Name,
    top: Annotated[int, Field(ge=1, le=32)] = 8,
    model: Model = "",
) -> dict[str, Any]:
    """The latents of a loaded SAE that fire most at each token of a prompt."""
    box = await box_of(ctx)
    loaded = {one.name: one.site for one in await box.saes()}
    if sae not in loaded:
        raise NotFound(f"no SAE {sae!r} is loaded for you; loaded: {', '.join(sorted(loaded)) or 'none'}")
    site = loaded[sae]
    found = await box.run(as_input(prompt), capture=capture(site, latents=sae, top_k=top), model=model, progress=False)
    item = found.only
    rows = item.captures.latents(site)
    told = [
        {
            "position": place,
            "token": item.tokens[place],
            "latents": [[int(i), number(v)] for i, v in zip(ids, values, strict=True) if i >= 0],
            "firing": int(count),
        }
        for place, ids, values, count in zip(rows.positions, rows.ids, rows.values, rows.counts, strict=True)
    ]
    return {"sae": sae, "site": site, "rows": told}


async def load_sae(
    ctx: Context[Boxes, Any],
    source: Annotated[str, Field(max_length=500, description="A folder that the box reads, or a hub id.")],
    name: Name = "",
    model: Model = "",
) -> dict[str, Any]:
    """Load an SAE from where the box itself may read."""
    found = await (await box_of(ctx)).load_sae(source, name=name, upload=False, model=model, progress=False)
    return {field: getattr(found, field) for field in _TOLD}


async def unload_sae(ctx: Context[Boxes, Any], name: Name) -> dict[str, Any]:
    """Unload an SAE of yours."""
    await (await box_of(ctx)).unload_sae(name)
    return {"unloaded": name}
