"""The base's own matrix of a weight, by the name that deltas have for it."""

from __future__ import annotations

from dataclasses import dataclass

from ...clients import Client
from ...protos.errors import Unsupported
from ...protos.model_info import ModelInfo
from ...protos.tensors import Array
from ...protos.variants.placing import by_module, module_of, tail_of

__all__ = ["WeightNumbers", "weight_numbers"]

_CONV = ("gpt2",)
"""Architectures whose layers keep W as [d_in, d_out] (transformers' Conv1D); all others turned."""


@dataclass(frozen=True, slots=True, eq=False)
class WeightNumbers:
    """y = x·W + b, as the checkpoint has it."""

    matrix: Array
    """W [d_in, d_out]."""
    bias: Array | None
    """[d_out]."""


def weight_numbers(client: Client, info: ModelInfo, name: str, *, model: str = "") -> WeightNumbers:
    """Of a weight, or of its part where several lie one behind the other in a module.

    Raises Unsupported where the model has no such weight, or its checkpoint has it in another form.
    """
    told = next((one for one in info.weights if one.name == name), None)
    if told is None:
        raise Unsupported(f"{info.architecture} has no {name} that is one plain matrix; edit its site by hooks")
    parts = by_module(info.weights)[module_of(told)]
    start, total = sum(one.d_out for one in parts[: parts.index(told)]), sum(one.d_out for one in parts)
    # The body's own name is not in every checkpoint.
    names = {tail_of(held): held for held in client.weight_names(model)}
    held = {part: names.get(tail_of(f"{told.path}.{part}"), "") for part in ("weight", "bias")}
    if not held["weight"]:
        raise Unsupported(f"the checkpoint of {info.id} has no {told.path}.weight, which is {name}")
    matrix = client.weights(held["weight"], model=model, progress=False)
    as_kept = name == "w_embed" or (info.architecture in _CONV and name != "w_unembed")
    matrix = matrix if as_kept else matrix.T
    if matrix.shape != (told.d_in, total):
        raise Unsupported(
            f"{held['weight']} is {list(matrix.shape)}, and {name} has {told.d_in} inputs, {total} outputs"
        )
    bias = client.weights(held["bias"], model=model, progress=False) if held["bias"] else None
    stop = start + told.d_out
    return WeightNumbers(matrix[:, start:stop], None if bias is None else bias[start:stop])
