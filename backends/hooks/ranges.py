"""Numbers that a model's dtype does not hold: an edit that would put them there is refused beforehand."""

from __future__ import annotations

import numpy as np

from ...protos.edits import Add, Clamp, Constant, Edit, Inline, Replace
from ...protos.errors import InvalidArgument
from ...protos.tensors import numpy_dtype

__all__ = ["check_numbers", "most"]

_BFLOAT16 = 3.3895313892515355e38


def most(dtype: str) -> float:
    """The largest number of a float dtype."""
    return _BFLOAT16 if dtype == "bfloat16" else float(np.finfo(numpy_dtype(dtype)).max)


def check_numbers(edit: Edit, dtype: str, where: str) -> None:
    """Raise InvalidArgument for an edit whose result no number of the model's dtype can be, whatever it acts on."""
    if isinstance(edit, Add):
        largest, alpha = float(np.abs(edit.vector.floats()).max()), abs(edit.alpha)
        if not edit.norm_match and largest * alpha > most("float32"):
            raise InvalidArgument(
                f"{where}: add.alpha {edit.alpha:g} times {largest:g} is beyond float32; send less of it"
            )
        return
    given: float | None = None
    if isinstance(edit, Replace) and isinstance(edit.source, (Constant, Inline)):
        array = edit.source.value.numpy()
        finite = np.abs(array[np.isfinite(array)].astype(np.float64))
        given = float(finite.max()) if finite.size else None
    elif isinstance(edit, Clamp) and edit.directions is None:
        given = max(edit.min or 0.0, -(edit.max or 0.0))  # what lies beyond a bound becomes the bound
    if given is not None and given > most(dtype):
        raise InvalidArgument(
            f"{where}: {given:g} is beyond {dtype}, in which this model computes (at most {most(dtype):g}); send smaller numbers"
        )
