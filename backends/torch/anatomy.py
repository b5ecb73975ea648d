"""The site table of a model, derived from the one in front of us."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..deltas.at_work import Deltas
from ..deltas.factors import UNEMBED
from ..model.anatomy.derive import Anatomy, NotUnderstood, derive
from ..model.anatomy.numbers import head_caps, head_scales, numbers_of
from ..model.anatomy.trace import Trace
from .attention import Attention
from .trace import TOLERANCES, Layers, recorded, same_layers, traced

__all__ = ["Found", "Head", "anatomy_of"]

PROBE_ROWS = 12
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
}


_FAILS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What the libraries raise of a model whose code calls things in its own way."""


@dataclass(frozen=True, slots=True)
class Found:
    """What one look at a model showed."""

    anatomy: Anatomy | None = None
    reason: str = ""
    """Why there is no anatomy."""
    attention: str = "eager"
    """Whose attention the model runs with: "sdpa" is where ours sits."""
    head: tuple[float | None, float] | None = None
    """(softcap, scale) with which the output head's rows are the model's own logits."""
    headless: str = ""
    """Why nothing can be said of the logits; there is no anatomy then."""


@torch.no_grad()
def anatomy_of(
    model: Any, attention: Attention, forward: Callable[[torch.Tensor], torch.Tensor], config: Any, device: torch.device
) -> Found:
    """Look at one forward. The model, loaded with the library's own attention, runs with ours afterwards where that gives
    the same rows; else with its own, and what is inside attention is not offered."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, min(config.vocab_size, 1000), (1, PROBE_ROWS), generator=generator).to(device)
    try:
        with recorded(model) as layers:
            own, wanted = _own(model, forward, ids)
        kind, trace = _shown(model, attention, forward, ids, own, layers)
        head = _head_of(model, own, wanted, config)
    except _FAILS as error:
        fault = f"a forward with its own code fails: {type(error).__name__}: {error}"
        return Found(None, fault, headless=fault)
    if head is None:
        fault = "the logits are not the output head's, scaled or capped"
        return Found(None, fault, kind, headless=fault)
    try:
        found = derive(
            trace,
            int(config.vocab_size),
            backend="torch",
            model_type=str(config.model_type),
            numbers=numbers_of(config),
            activations=ACTIVATIONS,
        )
    except NotUnderstood as error:
        return Found(None, str(error), kind, head)
    except _FAILS as error:
        return Found(None, f"its forward cannot be read: {type(error).__name__}: {error}", kind, head)
    return Found(found, "", kind, head)


def _own(
    model: Any, forward: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The model's own final-norm rows and logits, with its own attention. Its head may read the rows scaled."""
    own = forward(ids)
    return own, None if model.get_output_embeddings() is None else model(ids, use_cache=False).logits


def _shown(
    model: Any,
    attention: Attention,
    forward: Callable[[torch.Tensor], torch.Tensor],
    ids: torch.Tensor,
    own: torch.Tensor,
    layers: Layers,
) -> tuple[str, Trace]:
    """Whose attention the model is to run with, and what a forward with that shows. `own`, `layers`: with its own."""
    _call_ours(model, "sdpa")
    try:
        trace = traced(model, attention, forward, ids)
        if _near(trace.rows, own) or same_layers(model, layers, lambda: forward(ids), TOLERANCES[own.dtype]):
            return "sdpa", trace
    except _FAILS:
        trace = None
    _call_ours(model, "eager")
    with recorded(model) as layers:
        plain = traced(model, attention, forward, ids)
    if trace is None:
        return "eager", plain
    _call_ours(model, "sdpa")
    if _near(trace.rows, plain.rows) or same_layers(model, layers, lambda: forward(ids), TOLERANCES[own.dtype]):
        return "sdpa", trace
    _call_ours(model, "eager")
    return "eager", plain


def _call_ours(model: nn.Module, name: str) -> None:
    """Which entry of the library's registry the text model's attention calls: set directly, as some classes refuse it."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation_internal"):
            config._attn_implementation_internal = name  # pyright: ignore[reportOptionalMemberAccess] - as load_model


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """What makes logits of final-norm rows."""

    module: Any
    deltas: Deltas
    softcap: float | None = None
    scale: float = 1.0

    def __call__(self, hidden: torch.Tensor, columns: list[int] | None = None) -> torch.Tensor:
        """Of all tokens, or of the given ones."""
        if columns is None or type(self.module) is not nn.Linear:
            logits = self.module(hidden) if columns is None else self.module(hidden)[..., columns]
        else:
            at = torch.tensor(columns, device=hidden.device)
            bias: Any = self.module.bias
            logits = functional.linear(hidden, self.module.weight[at], bias if bias is None else bias[at])
            rows, own = hidden.reshape(-1, hidden.shape[-1]), logits.reshape(-1, len(columns))
            logits = self.deltas.added(UNEMBED, rows, own, columns=at).view(logits.shape)
        logits = logits if self.scale == 1.0 else logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def _head_of(
    model: Any, rows: torch.Tensor, wanted: torch.Tensor | None, config: Any
) -> tuple[float | None, float] | None:
    """(softcap, scale) with which the output head's rows are the model's own logits; None where they are neither."""
    head = model.get_output_embeddings()
    if head is None or wanted is None:
        return None
    raw = head(rows)
    for cap in head_caps(config):
        if _near(torch.tanh(raw / cap) * cap, wanted):
            return cap, 1.0
    return next(((None, c) for c in head_scales(config) if _near(raw * c, wanted)), None)


def _near(a: torch.Tensor, b: torch.Tensor) -> bool:
    a, b, tolerance = a.double(), b.double(), TOLERANCES[b.dtype]
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * b.abs().max().clamp_min(1e-30))
