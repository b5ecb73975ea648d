"""Which layers carry what tells two prompts apart: rows of one put into the other."""

from __future__ import annotations

from typing import Annotated, Any

from mcp.server.mcpserver import Context
from pydantic import Field

from ...clients import Input, LogitDifference, Target, patch as patching_hook
from ..answers import number
from ..boxes import Boxes, box_of
from .fields import Model

__all__ = ["patch"]

Text = Annotated[str, Field(max_length=4000)]


async def patch(
    ctx: Context[Boxes, Any],
    clean: Annotated[str, Field(max_length=4000, description="The prompt whose rows are taken.")],
    corrupt: Annotated[str, Field(max_length=4000, description="The prompt that they are put into; as many tokens.")],
    answer: Annotated[str, Field(max_length=100, description="One token, with its space: ' Mary'.")],
    wrong: Annotated[str, Field(max_length=100, description="The other one.")],
    site: Annotated[
        str, Field(max_length=60, description="Without a layer: resid_post, attn_out, mlp_out.")
    ] = "resid_post",
    positions: Annotated[list[int], Field(max_length=16, description="Negative: from the end.")] = [-1],  # noqa: B006
    model: Model = "",
) -> dict[str, Any]:
    """Activation patching over all layers: the logit of `answer` less that of `wrong`, in both prompts and with each patch."""
    box = await box_of(ctx)
    info = await box.describe(model)
    ids = [await box.token(text, model=info.id) for text in (answer, wrong)]
    metric = LogitDifference((ids[0],), (ids[1],))
    source, target = Input(text=clean, name="clean", source_only=True), Input(text=corrupt, name="corrupt")
    layers = list(range(info.n_layers))
    plans = [
        [patching_hook(f"{site}.{layer}", from_input="clean", positions=[place], inputs="corrupt")]
        for layer in layers
        for place in positions
    ]
    swept = await box.sweep(
        [source, target],
        Target(metric, inputs=("corrupt",)),
        plans,
        axes={"layer": layers, "position": positions},
        model=info.id,
        progress=False,
    )
    plain = await box.sweep(
        [Input(text=clean, name="clean"), Input(text=corrupt, name="corrupt")],
        metric,
        [[]],
        model=info.id,
        progress=False,
    )
    before = {name: float(plain.measured[name][0, 0]) for name in ("clean", "corrupt")}
    values = swept.measured["corrupt"][:, 0].reshape(len(layers), len(positions))
    gap = before["clean"] - before["corrupt"]
    rows = [
        {
            "layer": layer,
            "position": place,
            "difference": number(values[i, j]),
            "restored": _share(values[i, j], before, gap),
        }
        for i, layer in enumerate(layers)
        for j, place in enumerate(positions)
    ]
    return {"clean": number(before["clean"]), "corrupt": number(before["corrupt"]), "site": site, "patched": rows}


def _share(value: float, before: dict[str, float], gap: float) -> float | None:
    """0: nothing of the gap comes back; 1: all of it. None where there is none."""
    return number((value - before["corrupt"]) / gap) if abs(gap) > 1e-6 else None
