"""Writer of what is quantised: GPTQ, AWQ, compressed-tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..folder import read_config
from ..progress import Report
from .awq import awq_plan
from .compressed import compressed_plan
from .gptq import gptq_plan
from .kind import Kind, quantization_of
from .plain import STORES_TRANSPOSED, config_dtype, write_config
from .source import FLOATS, FileTensors, Planned
from .texts import copy_texts
from .write import write_weights

__all__ = ["write_packed"]

_PLANS: dict[Kind, Callable[..., list[Planned]]] = {
    "gptq": gptq_plan,
    "awq": awq_plan,
    "compressed-tensors": compressed_plan,
}


def write_packed(kind: Kind, source: Path, out: Path, dtype: str, report: Report) -> None:
    """The folder with every packed matrix as floats, in `dtype` ("auto": the config's), computed in float32."""
    config = read_config(source)
    tensors = FileTensors.of(source)
    chosen = dtype if dtype != "auto" else config_dtype(config) or _largest(tensors)
    transposed = config["model_type"] in STORES_TRANSPOSED
    quantization: dict[str, Any] = quantization_of(source, config)
    plan = _PLANS[kind](tensors, quantization, chosen, keep=dtype, transposed=transposed)
    write_config(out, config, chosen)
    copy_texts(source, out)
    write_weights(out, plan, report)


def _largest(tensors: FileTensors) -> str:
    """The dtype of the largest plain tensor, which is the embedding."""
    names = {dtype: name for name, dtype in FLOATS.items()}
    plain = {
        math.prod(stored.shape): names[stored.dtype] for stored in tensors.stored.values() if stored.dtype in names
    }
    return plain[max(plain)] if plain else "float16"
