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
from ..circuits.weights import WeightPart
from .base import Base
from .config import MAX_RANK, TuneConfig
from .confinement import Confinement

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
    confined: Mapping[str, Confinement]
    """Weight → what of it may change; those that are not here: all of it."""

    def off(self) -> Any:
        """A context in which the model is the base."""
        return self.model.disable_adapter()

    def layer(self, weight: str) -> Any:
        """peft's layer of a weight."""
        return self.base.module(weight)

    @property
    def trainable(self) -> int:
        """How many numbers may change: of a confined factor those inside alone."""
        found = 0
        for weight in self.weights:
            layer, confined = self.layer(weight), self.confined.get(weight)
            for factor in (layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight):
                if not factor.requires_grad:
                    continue
                if confined is not None and factor is confined.factor:
                    found += factor.numel() * int(confined.inside.sum()) // len(confined.inside)
                else:
                    found += factor.numel()
        return found

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

    AdamW does without decay. A part without rows or columns learns nothing until its confinement is moved.
    Raises InvalidArgument where full_rank needs a rank beyond 512.
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
    confined: dict[str, Confinement] = {}
    for weight, part in parts.items():
        if weight in ranks and (part.side != "all" or config.full_rank):
            confined[weight] = _confined(base.module(weight), part, full_rank=config.full_rank)
    return Adapter(base, model, weights, confined)


def exact_zeros(adapter: Adapter) -> bool:
    """Whether every number of ΔW outside the parts is exactly 0."""
    for weight, (a, b) in adapter.deltas().items():
        confined = adapter.confined.get(weight)
        if confined is not None:
            factor = b.T if confined.side == "rows" else a
            if factor[~confined.inside].any():
                return False
    return True


def _rank(base: Base, config: TuneConfig, weight: str, part: WeightPart | None) -> int:
    if not config.full_rank or part is None:
        return config.rank
    module = base.module(weight)
    rank = min(module.weight.shape) if part.side == "all" else len(part.index)
    if rank > MAX_RANK:
        raise InvalidArgument(
            f"full_rank needs rank {rank} at {weight}, and a variant's weight has at most {MAX_RANK}; take fewer units, or "
            "full_rank=False"
        )
    return rank


def _confined(layer: Any, part: WeightPart, *, full_rank: bool) -> Confinement:
    a, b = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
    side = "columns" if part.side == "columns" else "rows"
    found = Confinement(side, a, b, part.along(side, a.shape[1] if side == "columns" else b.shape[0]))
    if full_rank:
        found.begin_full_rank()
    else:
        found.begin()
    return found


def _is_conv(module: Any) -> bool:
    return type(module).__name__ == "Conv1D"
