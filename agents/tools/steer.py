"""A direction from texts, and what the model writes with it."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from mcp.server.mcpserver import Context
from pydantic import Field

from ...clients import Input, steer as steering_hook
from ..answers import number
from ..boxes import Boxes, box_of
from .fields import Model, Prompt, as_input

__all__ = ["steer"]

Texts = Annotated[list[Annotated[str, Field(max_length=4000)]], Field(min_length=1, max_length=32)]


async def steer(
    ctx: Context[Boxes, Any],
    prompt: Prompt,
    site: Annotated[str, Field(description="One site of the residual stream: resid_post.10.", max_length=100)],
    towards: Texts,
    away: Texts,
    strengths: Annotated[
        list[Annotated[float, Field(ge=-100, le=100)]],
        Field(min_length=1, max_length=6, description="In units of the difference itself; 0 is the model as it is."),
    ] = [0.0, 1.0, 2.0],  # noqa: B006 - a schema's default, which nobody changes
    max_new_tokens: Annotated[int, Field(ge=1, le=128)] = 40,
    model: Model = "",
) -> dict[str, Any]:
    """Add the difference of means (last tokens of `towards` less those of `away`) at a site to every token, and continue a prompt."""
    box = await box_of(ctx)
    texts = [Input(text=text, name=str(i)) for i, text in enumerate([*towards, *away])]
    run = await box.run(texts, capture=site, model=model, progress=False)
    rows = np.stack([item.captures.last(site) for item in run.inputs.values()]).astype(np.float64)
    direction = rows[: len(towards)].mean(axis=0) - rows[len(towards) :].mean(axis=0)
    names = [str(i) for i in range(len(strengths))]
    hooks = [
        steering_hook(site, direction.astype(np.float32), alpha=strength, inputs=name)
        for name, strength in zip(names, strengths, strict=True)
        if strength
    ]
    made = await box.generate(
        [as_input(prompt, name) for name in names], hooks=hooks, model=model, max_new_tokens=max_new_tokens
    )
    typical = float(np.linalg.norm(rows, axis=-1).mean())
    return {
        "site": site,
        "norm_of_difference": number(np.linalg.norm(direction)),
        "norm_of_rows": number(typical),
        "answers": [
            {"strength": strength, "text": item.text}
            for strength, item in zip(strengths, made.inputs.values(), strict=True)
        ],
    }
