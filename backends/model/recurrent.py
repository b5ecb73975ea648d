"""What recurrent layers (SSM, DeltaNet, lightning attention, short convolutions) hold of each sequence, told from their weights' shapes.

The tests hold it to what the libraries' own caches come to, architecture by architecture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["StateSize", "keeps_keys", "state_size"]

Shapes = Mapping[str, tuple[int, ...]]

_CONVOLUTION = re.compile(r"(^|[._])conv(1d|_1d)?\.weight$")
_DECAY = re.compile(r"\.(A_log|A|recurrent_param)$")
_GROUPS = ("mamba_n_groups", "mamba_ngroups", "n_groups")
_KEY_HEADS = ("linear_num_key_heads", "linear_num_heads")
"""What configs call how many heads have inputs (B and C) or keys of their own."""
_OUTPUTS = ("out_proj.weight", "o_proj.weight")
_KEYS = (".k_proj.weight", ".v_proj.weight", ".kv_a_proj_with_mqa.weight")


@dataclass(frozen=True, slots=True)
class StateSize:
    """Numbers a sequence, whatever its length, in all layers together."""

    in_dtype: int = 0
    """Kept as the model computes: a layer's last rows before a convolution, say."""
    wide: int = 0
    """Kept in float32."""

    def __add__(self, other: StateSize) -> StateSize:
        return StateSize(self.in_dtype + other.in_dtype, self.wide + other.wide)

    def nbytes(self, itemsize: int) -> int:
        """Bytes, of a model that computes in so many a number."""
        return self.in_dtype * itemsize + self.wide * 4


def keeps_keys(name: str, shapes: Shapes) -> bool:
    """Whether what a weight computes is kept for every position: keys, values, or what both come from."""
    module = name.rsplit(".", 2)[0]
    return name.endswith(_KEYS) and not any(f"{module}.{decay}" in shapes for decay in ("A_log", "A"))


def state_size(shapes: Shapes, config: Mapping[str, Any]) -> StateSize:
    """Nothing where all layers are attention. `shapes`: of the text model's weights by name; `config`: the text model's."""
    channels: dict[str, int] = {}
    total = StateSize()
    for name, shape in shapes.items():
        if len(shape) == 3 and 1 in shape[1:] and _CONVOLUTION.search(name):
            module = name.rsplit(".", 2)[0]
            channels[module] = channels.get(module, 0) + shape[0]
            total += StateSize(in_dtype=math.prod(shape))
    for name, shape in shapes.items():
        module, _, last = name.rpartition(".")
        if _DECAY.search(name):
            total += StateSize(wide=_of_decay(module, math.prod(shape), channels.get(module, 0), shapes, config))
        elif last == "time_decay":  # RWKV: the last row for either block, and three numbers a channel
            total += StateSize(2 * math.prod(shape), 3 * math.prod(shape))
        elif name.endswith(".qkv_proj.weight") and f"{module.rpartition('.')[0]}.output_gate.weight" in shapes:
            inner = shape[0] // 3  # lightning attention: keys times values, a head each
            total += StateSize(in_dtype=inner * inner // int(config.get("num_attention_heads") or 1))
    return total


def _of_decay(module: str, decays: int, channels: int, shapes: Shapes, config: Mapping[str, Any]) -> int:
    """Of one layer: a decay for each of its numbers (Mamba), or one a head (Mamba2, DeltaNet)."""
    inner = next((shapes[f"{module}.{out}"][1] for out in _OUTPUTS if f"{module}.{out}" in shapes), 0)
    if decays >= inner:
        return decays
    others = max(channels - inner, 0) // 2  # of B and C, or of queries and keys
    skips = f"{module}.D" in shapes  # an SSM has that, a DeltaNet has not
    groups = next((int(config[field]) for field in (_GROUPS if skips else _KEY_HEADS) if config.get(field)), 0)
    return inner * others // (groups or (1 if skips else decays))
