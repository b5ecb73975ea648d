"""From each layer's sites and sizes to those of the model: what all have in common, and what only some have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..sites import ATTENTION_TAPS, Dims, Tap
from .block import Block

__all__ = ["Table", "sizes", "table"]


@dataclass(slots=True, eq=False)
class Table:
    """Where sites are, in terms of a family's fields."""

    taps: dict[str, Tap] = field(default_factory=dict[str, Tap])
    where: dict[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    own: dict[str, dict[int, Tap]] = field(default_factory=dict[str, dict[int, Tap]])
    refused: dict[str, str] = field(default_factory=dict[str, str])
    """Site → why no layer offers it."""


def table(blocks: Sequence[Block], dims: Dims) -> Table:
    """The taps that most layers have, the layers' own, and the layers of sites that not every one has."""
    found = Table()
    for name in dict.fromkeys(name for block in blocks for name in (*block.taps, *block.why)):
        at = {i: _counted(name, block, dims) for i, block in enumerate(blocks) if name in block.taps}
        if not at:
            reasons = dict.fromkeys(block.why[name] for block in blocks if name in block.why)
            found.refused[name] = "; ".join(reasons)
            continue
        usual = Counter(at.values()).most_common(1)[0][0]
        found.taps[name] = usual
        if own := {i: tap for i, tap in at.items() if tap != usual}:
            found.own[name] = own
        if len(at) < len(blocks):
            found.where[name] = tuple(at)
    calling = tuple(i for i, block in enumerate(blocks) if block.call is not None)
    if len(calling) < len(blocks):
        found.where |= dict.fromkeys(ATTENTION_TAPS, calling)
    return found


def _counted(name: str, block: Block, dims: Dims) -> Tap:
    """z's tap says how many heads it is, where that is not the usual number."""
    tap = block.taps[name]
    if name != "z" or block.call is None or block.call.q.shape[1] == dims.n_heads:
        return tap
    return replace(tap, heads=block.call.q.shape[1])


def sizes(blocks: Sequence[Block], last: Any, vocab: int) -> Dims:
    """Those of most layers, and each layer's own where they differ. `last`: what the last layer gives."""
    each = [_of_layer(block, last.shape[-1], vocab) for block in blocks]
    usual = Dims(
        n_layers=len(blocks),
        d_model=last.shape[-1],
        n_heads=_most(one.n_heads for one in each),
        n_kv_heads=_most(one.n_kv_heads for one in each),
        d_head=_most(one.d_head for one in each),
        d_mlp=_most(one.d_mlp for one in each),
        vocab=vocab,
        n_experts=_most(one.n_experts for one in each),
        d_v=_most(one.d_v for one in each),
    )
    alike = all(replace(one, n_layers=len(blocks)) == usual for one in each)
    return usual if alike else replace(usual, by_layer=tuple(each))


def _of_layer(block: Block, d_model: int, vocab: int) -> Dims:
    call = block.call
    return Dims(
        n_layers=1,
        d_model=d_model,
        n_heads=call.q.shape[1] if call else 0,
        n_kv_heads=call.k.shape[1] if call else 0,
        d_head=call.q.shape[3] if call else 0,
        d_mlp=block.d_mlp,
        vocab=vocab,
        n_experts=block.n_experts,
        d_v=call.v.shape[3] if call and call.v.shape[3] != call.q.shape[3] else 0,
    )


def _most(found: Iterable[int]) -> int:
    """The most common of those that are not 0."""
    counted = Counter(number for number in found if number)
    return counted.most_common(1)[0][0] if counted else 0
