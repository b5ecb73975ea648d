"""Texts of the model, with hooks at work and sites read on the way."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from mcp.server.mcpserver import Context
from pydantic import Field

from ..answers import number, rows_told
from ..boxes import Boxes, box_of
from .fields import Hooks, Model, Prompt, Sites, Variant, as_input, hooks_of

__all__ = ["MAX_TOKENS", "generate", "read_activations"]

MAX_TOKENS = 256
Prompts = Annotated[list[Prompt], Field(min_length=1, max_length=8)]


async def generate(
    ctx: Context[Boxes, Any],
    prompts: Prompts,
    max_new_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] = 64,
    temperature: Annotated[float, Field(ge=0, le=10, description="0: greedy.")] = 0.0,
    seed: Annotated[int, Field(ge=0, le=2**53)] = 0,
    hooks: Hooks = [],  # noqa: B006 - a schema's default, which nobody changes
    capture: Annotated[list[str], Field(max_length=8, description="Sites to read.")] = [],  # noqa: B006
    variant: Variant = [],  # noqa: B006
    json_schema: Annotated[dict[str, Any] | None, Field(description="What each text must be.")] = None,
    model: Model = "",
) -> dict[str, Any]:
    """Continue prompts. `hooks` edit on the way (steer, ablate, patch); `capture` tells norms and largest units of the last rows."""
    found = await (await box_of(ctx)).generate(
        [as_input(prompt, str(i)) for i, prompt in enumerate(prompts)],
        hooks=hooks_of(hooks),
        capture=capture,
        variant=variant,
        model=model,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        grammar=json_schema,
    )
    answers = [
        {
            "text": item.text,
            "ended_by": item.finish_reason,
            "prompt_tokens": len(item.prompt_ids),
            "captures": {
                site: rows_told(item.captures[site], item.captures.positions(site), item.tokens)
                for site in item.captures.sites
            },
        }
        for item in found.inputs.values()
    ]
    return {"model": found.started.model, "seed": seed, "answers": answers}


async def read_activations(
    ctx: Context[Boxes, Any],
    prompts: Prompts,
    sites: Sites,
    hooks: Hooks = [],  # noqa: B006
    variant: Variant = [],  # noqa: B006
    last_only: Annotated[bool, Field(description="The last token's row alone.")] = True,
    model: Model = "",
) -> dict[str, Any]:
    """One forward over each prompt: norm and largest units of each row at the sites, and the likeliest next tokens."""
    box = await box_of(ctx)
    items = [as_input(prompt, str(i)) for i, prompt in enumerate(prompts)]
    found = await box.run(
        items, capture=[*sites, "logits"], hooks=hooks_of(hooks), variant=variant, model=model, progress=False
    )
    answers: list[dict[str, Any]] = []
    for item in found.inputs.values():
        logits = item.captures["logits"][-1].astype(float)
        logits -= logits.max()
        best = logits.argsort()[::-1][:5]
        texts = (await box.tokenize([int(i) for i in best], model=model)).tokens
        shifted = logits - np.log(np.exp(logits).sum())
        rows = slice(-1, None) if last_only else slice(None)
        answers.append(
            {
                "tokens": len(item.tokens),
                "next": [[text, number(shifted[i])] for text, i in zip(texts, best, strict=True)],
                "sites": {
                    site: rows_told(item.captures[site][rows], item.captures.positions(site)[rows], item.tokens)
                    for site in item.captures.sites
                    if site != "logits" or "logits" in sites
                },
            }
        )
    return {"model": found.started.model, "answers": answers}
