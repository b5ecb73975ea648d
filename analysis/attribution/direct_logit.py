"""Direct logit attribution: what each part of the model writes straight into the logits (Elhage et al. 2021).

The final norm's scale is held at its actual value, so a metric of the logits is linear in the last residual stream, and
the stream is the sum of what every part wrote. The direction to project on is the gradient of the metric under the rule
"ln", so no family's norm, unembedding or projection is written down here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Input, InputResult, NamedArray, ablate, capture, patch
from ...clients.requests.prompts import Prompt
from ...clients.results.results import Gradients
from ...protos.errors import InvalidArgument, Unsupported
from ...protos.metrics import Logit, LogitDifference, Metric
from ...protos.model import ModelInfo
from .taylor import check_gradients

__all__ = ["DirectLogit", "direct_logit"]

Floats = NDArray[np.float64]
Linear = Logit | LogitDifference

TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}
"""By the model's dtype: how far the parts may be from the metric, as a share of the sum of their magnitudes."""


@dataclass(frozen=True, slots=True, eq=False)
class DirectLogit:
    """Contributions to a metric, in its units (logits). `bias`, `embed`, `attn` and `mlp` sum to it."""

    metric: float
    """As the model has it."""
    position: int
    """The row that predicts; absolute."""
    bias: float
    """What the logits say of an empty stream: the biases of the last norm and the unembedding, whatever the prompt."""
    embed: float
    """The token's embedding."""
    attn: NamedArray
    """[layer]: attention outputs."""
    mlp: NamedArray
    """[layer]: MLP (or experts') outputs."""
    direction: Floats
    """[d_model]: what a unit of each coordinate of the last stream is worth."""
    heads: NamedArray | None = None
    """[layer, head], where asked for; `attn` less their sum is the output projection's bias."""
    head_slopes: Floats | None = None
    """[layer, head, d_head], with `heads`: what a unit of each coordinate of `z` is worth."""
    neurons: NamedArray | None = None
    """[layer, unit], where asked for; `mlp` less their sum is the down projection's bias."""

    @property
    def total(self) -> float:
        """The sum of the parts; equals `metric` up to rounding of the model's dtype."""
        return self.bias + self.embed + float(self.attn.values.sum() + self.mlp.values.sum())

    @property
    def parts(self) -> dict[str, float]:
        """Every part by name, in forward order: bias, embed, attn.0, mlp.0, attn.1, …"""
        found = {"bias": self.bias, "embed": self.embed}
        for layer, attn, mlp in zip(self.attn.axes["layer"], self.attn.values, self.mlp.values, strict=True):
            found |= {f"attn.{layer}": float(attn), f"mlp.{layer}": float(mlp)}
        return found

    @property
    def cumulative(self) -> NamedArray:
        """[layer]: what bias, embedding and all layers up to and with this one say together."""
        each = self.attn.values + self.mlp.values
        return NamedArray(self.bias + self.embed + np.cumsum(each), {"layer": self.attn.axes["layer"]})

    def __repr__(self) -> str:
        top = sorted(self.parts.items(), key=lambda item: -abs(item[1]))[:5]
        shown = ", ".join(f"{name} {value:+.2f}" for name, value in top)
        return f"DirectLogit({self.metric:+.3f} = {shown}, …)"


def direct_logit(
    client: Client, prompt: Prompt, metric: Metric, *, heads: bool = False, neurons: bool = False, model: str = ""
) -> DirectLogit:
    """Take a metric of the logits apart by what wrote it.

    `heads` and `neurons` split attention and MLP outputs too. Costs three forwards and a backward, whatever is asked.
    Raises InvalidArgument for a metric other than Logit and LogitDifference, and Unsupported where the logits
    are not linear in the stream even with the norm held (gemma2's softcap), or the model's parts do not sum to it.
    """
    if not isinstance(metric, (Logit, LogitDifference)):
        raise InvalidArgument(
            f"direct_logit takes Logit or LogitDifference, got {type(metric).__name__}: "
            "only given logits are sums of what the parts of the model write"
        )
    info = client.describe(model)
    last = f"resid_post.{info.n_layers - 1}"
    _check_sites(info, last, heads=heads, neurons=neurons)
    tokens = client.tokenize(prompt, model=model).token_ids
    position = _position(metric, len(tokens))
    split = (("z.*",) if heads else ()) + (("mlp_act.*",) if neurons else ())
    answer = _answer(client, tokens, metric, position, last, split, model)
    own, bias = answer.inputs["own"], answer.inputs["empty"].metric
    direction = own.gradients[last][0].astype(np.float64)
    layers = range(info.n_layers)
    by_head, slopes = _split(own, "z", own.captures.layers("z")) if heads else (None, None)
    by_unit, _ = _split(own, "mlp_act", own.captures.layers("mlp_act")) if neurons else (None, None)
    found = DirectLogit(
        own.metric,
        position,
        bias,
        _dot(own.captures["embed"][0], direction),
        NamedArray(_project(own, "attn_out", direction), {"layer": layers}),
        NamedArray(_project(own, "mlp_out", direction), {"layer": layers}),
        direction,
        by_head,
        slopes,
        by_unit,
    )
    _require_linear(found, own.captures[last][0], info)
    return found


def _answer(
    client: Client,
    tokens: tuple[int, ...],
    metric: Linear,
    position: int,
    last: str,
    split: tuple[str, ...],
    model: str,
) -> Gradients:
    """One forward and backward in which the stream alone carries gradients.

    "own" takes what every branch reads at the position from "frozen", the same prompt: no value changes, and no gradient
    passes through a later branch. "empty" has no stream to read, so its metric is the bias.
    """
    reads = [capture(site, positions=position, inputs="own") for site in (*split, last)]
    written = [capture(site, positions=position, inputs="own") for site in ("embed", "attn_out.*", "mlp_out.*")]
    freeze = [
        patch(f"{site}.*", from_input="frozen", positions=position, inputs="own")
        for site in ("attn_resid", "mlp_resid")
    ]
    inputs = [Input(token_ids=tokens, name=name, source_only=name == "frozen") for name in ("own", "empty", "frozen")]
    return client.gradients(
        inputs,
        {"own": metric, "empty": metric},
        at=reads,
        capture=[*reads, *written],
        hooks=[*freeze, ablate(last, positions=position, inputs="empty")],
        rules=("ln",),
        model=model,
    )


def _split(item: InputResult, site: str, layers: Sequence[int]) -> tuple[NamedArray, Floats]:
    """(contributions, slopes) of heads [layer, head], [layer, head, d_head], or of units, both [layer, unit]."""
    values, slopes = (part.stack(site)[:, 0].astype(np.float64) for part in (item.captures, item.gradients))
    shares = values * slopes
    shares = shares.sum(axis=-1) if site == "z" else shares
    return NamedArray(shares, {"layer": layers, "head" if site == "z" else "unit": range(shares.shape[1])}), slopes


def _check_sites(info: ModelInfo, last: str, *, heads: bool, neurons: bool) -> None:
    check_gradients(info, (last, "attn_resid.0", "mlp_resid.0"))
    for wanted, name in ((heads, "z"), (neurons, "mlp_act")):
        if wanted and info.site(name) is None:
            raise Unsupported(
                f"{info.id} offers no {name}, so its outputs cannot be split by {'heads' if heads else 'neurons'}"
            )


def _position(metric: Linear, length: int) -> int:
    if not -length <= metric.position < length:
        raise InvalidArgument(f"the metric is measured at position {metric.position}; the prompt has {length} tokens")
    return metric.position % length


def _project(item: InputResult, name: str, direction: Floats) -> Floats:
    return item.stack(name)[:, 0].astype(np.float64) @ direction


def _dot(row: NDArray[np.floating], direction: Floats) -> float:
    return float(row.astype(np.float64) @ direction)


def _require_linear(found: DirectLogit, stream: NDArray[np.floating], info: ModelInfo) -> None:
    """Raise Unsupported unless the metric is linear in the stream, and the stream the sum of its parts."""
    scale = sum(abs(part) for part in found.parts.values()) + abs(found.metric)
    allowed = TOLERANCE.get(info.dtype, TOLERANCE["bfloat16"]) * max(scale, 1e-30)
    linear = found.bias + _dot(stream, found.direction)
    if abs(linear - found.metric) > allowed:
        raise Unsupported(
            f"{info.id}: with the final norm held at its scale the metric would be {linear:.4g}, but it is "
            f"{found.metric:.4g}: its logits are not linear in the stream (a softcap), so no part has a share of its own; "
            "use patching or RelP"
        )
    if abs(found.total - linear) > allowed:
        raise Unsupported(
            f"{info.id}: embedding, attention and MLP outputs say {found.total:.4g} together, the stream that they should "
            f"add up to says {linear:.4g}; this family writes to the stream elsewhere too"
        )
