"""What the box serves, and what can be asked of it."""

from __future__ import annotations

from typing import Annotated, Any

from mcp.server.mcpserver import Context
from pydantic import Field

from ..boxes import Boxes, box_of
from .fields import Model, Prompt, as_input

__all__ = ["describe", "tokenize"]


async def describe(ctx: Context[Boxes, Any], model: Model = "") -> dict[str, Any]:
    """The models of the box, and of one: sizes, sites that can be read and edited, what it refuses and why. Call this first."""
    box = await box_of(ctx)
    models = [info.id for info in await box.models()]
    if not model and len(models) > 1:
        return {"models": models, "next": "name one of them"}
    info = await box.describe(model)
    names = ("id", "family", "backend", "dtype", "n_layers", "d_model", "n_heads", "d_head", "d_mlp", "vocab_size")
    told = {name: getattr(info, name) for name in (*names, "context_length", "chat_template", "generate", "rules")}
    sites = [
        {
            "site": site.name if site.layers is None else f"{site.name}.LAYER",
            "axes": list(site.axes),
            "edits": list(site.edits),
            "gradients": site.gradients,
        }
        for site in info.sites
    ]
    return {"models": models, "model": told, "sites": sites, "refused": dict(info.refused)}


async def tokenize(
    ctx: Context[Boxes, Any],
    prompt: Prompt,
    model: Model = "",
    at_most: Annotated[int, Field(ge=1, le=512)] = 256,
) -> dict[str, Any]:
    """Tokens and their ids: positions count from 0, special tokens included."""
    found = await (await box_of(ctx)).tokenize(as_input(prompt), model=model)
    rows = list(zip(range(at_most), found.tokens, found.token_ids, strict=False))
    return {"n": len(found.token_ids), "tokens": [[i, text, token] for i, text, token in rows]}
