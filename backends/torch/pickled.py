"""Tensors in the files that torch.save writes, read without running what a pickle may hold."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, cast

import ml_dtypes
import numpy as np
import torch

from ...protos.errors import InvalidArgument
from ...protos.tensors import Array

__all__ = ["array_of", "pickled_tensors"]

_GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
"""Where torch says what a pickle would call."""
_VIEWS: dict[torch.dtype, tuple[torch.dtype, Any]] = {
    torch.bfloat16: (torch.int16, ml_dtypes.bfloat16),
    torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn),
    torch.float8_e5m2: (torch.uint8, ml_dtypes.float8_e5m2),
}
"""What numpy lacks -> integers of the same size, and what they are."""


def pickled_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors by name, mapped from the file where its format allows.

    Raises InvalidArgument for a file that is cut short, and for one that holds or would run anything else.
    """
    _check_whole(path)
    content = _loaded(path)
    if not isinstance(content, dict):
        raise InvalidArgument(
            f"{path} holds {type(content).__name__}, not tensors by name; it is no checkpoint's weights"
        )
    tensors: dict[str, torch.Tensor] = {}
    for name, value in cast("dict[Any, Any]", content).items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise InvalidArgument(
                f"{path} holds {type(value).__name__} under {name!r}, where weights alone belong; save the model's state_dict"
            )
        if value.layout is not torch.strided or value.is_quantized:
            raise InvalidArgument(f"{path} holds {name} as a sparse or quantised tensor, which is no plain weight")
        tensors[name] = value
    return tensors


def array_of(tensor: torch.Tensor) -> Array:
    """The numpy array of one tensor, in its own dtype and shape."""
    tensor = tensor.detach().contiguous()
    if tensor.dtype in _VIEWS:
        integers, dtype = _VIEWS[tensor.dtype]
        return tensor.view(integers).numpy().view(np.dtype(dtype))
    return tensor.numpy()


def _check_whole(path: Path) -> None:
    """Look at the check sums of what torch.save writes as a zip: torch itself does not, and a part of a file that was never
    fetched reads as zeros. One written without them has 0 in their place."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as content:
            summed = any(member.CRC for member in content.infolist())
            damaged = content.testzip() if summed else None
    except (EOFError, OSError, RuntimeError, ValueError, zipfile.BadZipFile, zlib.error):
        return  # torch says what is wrong with it
    if damaged is not None:
        raise InvalidArgument(
            f"{path} is damaged: {damaged} in it is not what was written (its check sum differs); fetch it again"
        )


def _loaded(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in str(error):
                    raise
                return torch.load(path, map_location="cpu", weights_only=True)  # written before torch 1.6
    except pickle.UnpicklingError as error:
        named = _GLOBAL.search(str(error))  # the rest of torch's text advises to load it all the same
        what = f"it names {named[1]}, which is no tensor" if named else "it may be damaged"
        raise InvalidArgument(
            f"{path} holds other things than tensors, and nothing in it was run: {what}. Take safetensors of this model, "
            "or a file of its weights alone"
        ) from None
    except (AttributeError, EOFError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise InvalidArgument(f"{path} cannot be read as a file of torch.save: {said[:300]}; fetch it again") from error
