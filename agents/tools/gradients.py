"""Attribution by gradients: which rows and units of a site a logit hangs on, to first order."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from mcp.server.mcpserver import Context
from pydantic import Field

from ...clients import Logit, LogitDifference
from ..answers import number
from ..boxes import Boxes, box_of
from .fields import Model, Prompt, Sites, as_input

__all__ = ["attribute"]

MAX_TOP = 40


async def attribute(
    ctx: Context[Boxes, Any],
    prompt: Prompt,
    answer: Annotated[str, Field(max_length=100, description="One token, with its space: ' Mary'.")],
    sites: Sites,
    wrong: Annotated[str, Field(max_length=100, description="Another token, to take the difference; or empty.")] = "",
    top: Annotated[int, Field(ge=1, le=MAX_TOP)] = 10,
    model: Model = "",
) -> dict[str, Any]:
    """Value times gradient of the answer's logit at sites, by position and by unit: a first-order estimate, not an effect."""
    box = await box_of(ctx)
    tokens = [await box.token(text, model=model) for text in (answer, wrong) if text]
    metric = Logit(tokens[0]) if len(tokens) == 1 else LogitDifference((tokens[0],), (tokens[1],))
    found = await box.gradients(as_input(prompt), metric, at=sites, capture=sites, model=model, progress=False)
    item = found.only
    told: dict[str, Any] = {}
    for site in item.gradients.sites:
        product = item.captures[site].astype(np.float64) * item.gradients[site]
        product = product.reshape(len(product), -1)
        places = item.captures.positions(site)
        largest = [
            divmod(int(i), product.shape[1]) for i in np.argsort(-np.abs(product), axis=None, kind="stable")[:top]
        ]
        told[site] = {
            "by_position": [[p, item.tokens[p], number(v)] for p, v in zip(places, product.sum(axis=1), strict=True)],
            "largest": [
                {"position": places[row], "unit": unit, "value": number(product[row, unit])} for row, unit in largest
            ],
        }
    return {"metric": number(item.metric), "value_times_gradient": told}
