"""ReFT (Wu et al. 2024): a low-rank change of the residual stream at some tokens of the prompt, learned; served as hooks."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from .base import Base
from .config import TuneConfig

__all__ = ["Reft", "attach_reft", "chosen_positions"]


@dataclass(slots=True, eq=False)
class Reft:
    """LoReFT, h + Rᵀ(W h + b − R h) with R's rows orthonormal, or DiReFT, h + Rᵀ(W h + b), at chosen layers."""

    base: Base
    layers: tuple[int, ...]
    config: TuneConfig
    parameters: dict[int, tuple[Any, Any, Any]]
    """Layer → R [r, d_model], W [r, d_model], b [r]."""
    where: Any = None
    """[example, pos] of the batch under way: the tokens that are changed."""
    on: bool = True
    handles: list[Any] = field(default_factory=list[Any])

    @contextmanager
    def off(self) -> Generator[None]:
        """The model is the base within."""
        self.on = False
        try:
            yield
        finally:
            self.on = True

    def change(self, layer: int, h: Any) -> Any:
        """The changed rows [example, pos, d_model]."""
        R, W, b = self.parameters[layer]
        inner = h @ W.T + b
        if self.config.low_rank_subspace == "loreft":
            inner = inner - h @ R.T
        return h + self.where.to(h.dtype)[..., None] * (inner @ R)

    def retract(self) -> None:
        """Bring R back to orthonormal rows, by QR with a positive diagonal, so that it moves as little as it can."""
        if self.config.low_rank_subspace != "loreft":
            return
        torch: Any = import_module("torch")
        with torch.no_grad():
            for R, _, _ in self.parameters.values():
                Q, upper = torch.linalg.qr(R.T)
                R.copy_((Q * torch.where(upper.diagonal() < 0, -1.0, 1.0)).T)

    def affine(self) -> dict[int, tuple[Any, Any, Any]]:
        """Layer → (A [d_model, r], c [r], B [r, d_model]) of h + (h·A + c)·B, float32."""
        found: dict[int, tuple[Any, Any, Any]] = {}
        for layer, (R, W, b) in self.parameters.items():
            a = W - R if self.config.low_rank_subspace == "loreft" else W
            found[layer] = tuple(x.detach().cpu().float().numpy().copy() for x in (a.T, b, R))
        return found


def attach_reft(base: Base, config: TuneConfig) -> Reft:
    """Hooks on the blocks, and their parameters as part of the model; W begins as R, so that nothing is changed yet."""
    torch: Any = import_module("torch")
    layers = tuple(dict.fromkeys(base.layer(index) for index in config.layers or (base.n_layers // 2,)))
    generator = torch.Generator().manual_seed(config.seed)
    store = torch.nn.ParameterDict()
    parameters: dict[int, tuple[Any, Any, Any]] = {}
    for layer in layers:
        Q, _ = torch.linalg.qr(torch.randn(base.d_model, config.rank, generator=generator))
        loreft = config.low_rank_subspace == "loreft"
        start = Q.T.clone() if loreft else torch.zeros(config.rank, base.d_model)
        trio = [torch.nn.Parameter(x.to(config.device)) for x in (Q.T.clone(), start, torch.zeros(config.rank))]
        store.update({f"{name}_{layer}": value for name, value in zip("RWb", trio, strict=True)})
        parameters[layer] = (trio[0], trio[1], trio[2])
    base.model.reft = store
    reft = Reft(base, layers, config, parameters)
    for layer in layers:
        reft.handles.append(base.block(layer).register_forward_hook(_hook(reft, layer)))
    return reft


def chosen_positions(prompt_length: Any, n: int, positions: tuple[int, int]) -> Any:
    """[example, pos] bool: the first and the last tokens of each prompt, as hooks of those positions choose them."""
    torch: Any = import_module("torch")
    first, last = positions
    index = torch.arange(n, device=prompt_length.device)[None]
    length = prompt_length[:, None]
    return (index < length) & ((index < first) | (index >= length - last))


def _hook(reft: Reft, layer: int) -> Any:
    def changed(module: Any, inputs: Any, output: Any) -> Any:
        del module, inputs
        if not reft.on or reft.where is None:
            return output
        if isinstance(output, tuple):
            return (reft.change(layer, output[0]), *output[1:])
        return reft.change(layer, output)

    return changed
