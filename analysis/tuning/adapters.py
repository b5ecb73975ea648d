"""LoRA with peft, masked to parts of weights where asked, and what it comes to as deltas."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...protos.errors import InvalidArgument
from .base import Base
from .circuit_mask import WeightPart
from .config import MAX_RANK, TuneConfig

__all__ = ["Adapter", "attach", "exact_zeros"]

_NAME = "default"
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """peft's layers over a base, by weight name. `off()` gives the base's own numbers, without a second copy."""

    base: Base
    model: Any
    """PeftModel."""
    weights: tuple[str, ...]
    parts: Mapping[str, WeightPart]
    """Weight → the part that may change; empty: all of it."""

    def off(self) -> Any:
        """A context in which the model is the base."""
        return self.model.disable_adapter()

    def layer(self, weight: str) -> Any:
        """peft's layer of a weight."""
        return self.base.module(weight)

    def factors(self) -> list[tuple[Any, Any]]:
        """(A [r, d_in], scaled B [d_out, r]) of each weight, with gradients."""
        found: list[tuple[Any, Any]] = []
        for weight in self.weights:
            layer = self.layer(weight)
            found.append((layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight * layer.scaling[_NAME]))
        return found

    def deltas(self) -> dict[str, tuple[Floats, Floats]]:
        """Weight name → (A [d_in, r], B [r, d_out]), float32, the scaling folded into B."""
        return {
            weight: (
                np.ascontiguousarray(a.detach().cpu().float().numpy().T),
                np.ascontiguousarray(b.detach().cpu().float().numpy().T),
            )
            for weight, (a, b) in zip(self.weights, self.factors(), strict=True)
        }


def attach(base: Base, config: TuneConfig, weights: Sequence[str], parts: Mapping[str, WeightPart]) -> Adapter:
    """Put LoRA on the weights; with `parts`, what lies outside them is 0 at the start and stays so: its gradient is 0 and

    AdamW does without decay. Raises InvalidArgument where full_rank needs a rank beyond 512.
    """
    peft: Any = import_module("peft")
    torch: Any = import_module("torch")
    weights = tuple(weights)
    ranks = {weight: _rank(base, config, weight, parts.get(weight)) for weight in weights}
    scaled = {weight: float(rank) if config.full_rank else config.alpha for weight, rank in ranks.items()}
    paths = base.paths
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft 0.21 asks transformers 5.23 by a name that goes in 6.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        torch.manual_seed(config.seed)
        model: Any = peft.get_peft_model(
            base.model,
            peft.LoraConfig(
                task_type="CAUSAL_LM",
                r=config.rank,
                lora_alpha=config.alpha,
                lora_dropout=0.0,
                target_modules=[paths[weight] for weight in weights],
                rank_pattern={paths[weight]: rank for weight, rank in ranks.items() if rank != config.rank},
                alpha_pattern={paths[weight]: alpha for weight, alpha in scaled.items() if alpha != config.alpha},
                fan_in_fan_out=any(_is_conv(base.module(weight)) for weight in weights),
            ),
        )
    adapter = Adapter(base, model, weights, dict(parts))
    for weight, part in parts.items():
        if weight in ranks:
            _confine(torch, adapter.layer(weight), part, full_rank=config.full_rank)
    return adapter


def exact_zeros(adapter: Adapter) -> bool:
    """Whether every number of ΔW outside the parts is exactly 0."""
    for weight, (a, b) in adapter.deltas().items():
        part = adapter.parts.get(weight)
        if part is not None:
            rows = b if part.side == "rows" else a.T
            if rows[:, ~part.mask(rows.shape[1])].any():
                return False
    return True


def _rank(base: Base, config: TuneConfig, weight: str, part: WeightPart | None) -> int:
    if not config.full_rank or part is None:
        return config.rank
    module = base.module(weight)
    rank = len(part.index) if part.index is not None else min(module.weight.shape)
    if rank > MAX_RANK:
        raise InvalidArgument(
            f"full_rank needs rank {rank} at {weight}, and a variant's weight has at most {MAX_RANK}; take fewer units, or "
            "full_rank=False"
        )
    return rank


def _confine(torch: Any, layer: Any, part: WeightPart, *, full_rank: bool) -> None:
    """Zeros outside the part, at the start and in every gradient; with full_rank one factor picks the units and is fixed."""
    a, b = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
    inside = part.mask(b.shape[0] if part.side == "rows" else a.shape[1])
    kept = torch.from_numpy(inside).to(a.device)
    confined = b if part.side == "rows" else a
    shape = kept[:, None] if part.side == "rows" else kept[None]
    with torch.no_grad():
        if full_rank:
            chosen = torch.eye(len(inside), device=a.device)[kept]
            (b if part.side == "rows" else a).copy_(chosen.T if part.side == "rows" else chosen)
            (a if part.side == "rows" else b).zero_()
            confined.requires_grad_(requires_grad=False)
            return
        confined.mul_(shape)
    confined.register_hook(shape.to(confined.dtype).mul)


def _is_conv(module: Any) -> bool:
    return type(module).__name__ == "Conv1D"
