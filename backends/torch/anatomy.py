"""The site table of an architecture that no row describes, derived from the model in front of us."""

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
from .attention import Attention
from .deltas import columns_of
from .trace import TOLERANCES, traced

__all__ = ["Found", "Head", "anatomy_of", "head_of"]

PROBE_ROWS = 12
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "relu2": lambda x: functional.relu(x).square(),
}


@dataclass(frozen=True, slots=True)
class Found:
    """An anatomy, or why there is none."""

    anatomy: Anatomy | None
    reason: str = ""
    attention: str = "eager"
    """Whose attention the model runs with: "sdpa" is where ours sits."""


@torch.no_grad()
def anatomy_of(
    model: Any, attention: Attention, forward: Callable[[torch.Tensor], torch.Tensor], config: Any, device: torch.device
) -> Found:
    """Look at one forward. The model, loaded with the library's own attention, runs with ours afterwards where that gives
    the same rows; else with its own, and what is inside attention is not offered."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, min(config.vocab_size, 1000), (1, PROBE_ROWS), generator=generator).to(device)
    own = forward(ids)
    _call_ours(model, "sdpa")
    kind = "sdpa"
    if not _same(forward, ids, own):
        _call_ours(model, "eager")
        kind = "eager"
    trace = traced(model, attention, forward, ids)
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
        return Found(None, str(error), kind)
    return Found(found, "", kind)


def _same(forward: Callable[[torch.Tensor], torch.Tensor], ids: torch.Tensor, own: torch.Tensor) -> bool:
    try:
        rows = forward(ids)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError):  # a class that calls it in its own way
        return False
    error = (rows.double() - own.double()).abs().max() / own.double().abs().max().clamp_min(1e-30)
    return bool(error <= TOLERANCES[own.dtype])


def _call_ours(model: nn.Module, name: str) -> None:
    """Which entry of the library's registry the text model's attention calls."""
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
            logits = self.deltas.added(UNEMBED, rows, own, columns=columns_of(at)).view(logits.shape)
        logits = logits if self.scale == 1.0 else logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


@torch.no_grad()
def head_of(
    model: Any, rows: Callable[[torch.Tensor], torch.Tensor], config: Any, device: torch.device
) -> tuple[float | None, float] | None:
    """(softcap, scale) with which the output head's rows are the model's own logits; None where they are neither."""
    ids = torch.arange(1, PROBE_ROWS, device=device)[None]
    head = model.get_output_embeddings()
    wanted: torch.Tensor | None = model(ids, use_cache=False).logits
    if head is None or wanted is None:
        return None
    raw = head(rows(ids))
    for cap in head_caps(config):
        if _near(torch.tanh(raw / cap) * cap, wanted):
            return cap, 1.0
    return next(((None, c) for c in head_scales(config) if _near(raw * c, wanted)), None)


def _near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return bool((a.double() - b.double()).abs().max() <= TOLERANCES[b.dtype] * b.double().abs().max())
