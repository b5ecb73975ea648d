"""pytorch_model.bin: the tensors of torch.save's files, with torch's own reader of weights alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ....protos.errors import FailedPrecondition, InvalidArgument
from ....protos.tensors import Array
from ..json_file import json_object
from .source import NUMPY, Planned, Stored, copied

__all__ = ["PickledTensors", "bin_paths", "bin_plan", "check_complete", "check_listed"]

_SINGLE = "pytorch_model.bin"
_INDEX = "pytorch_model.bin.index.json"
_NAMES = {dtype: name for name, dtype in NUMPY.items()}


class PickledTensors:
    """Those of torch.save's files. Raises FailedPrecondition where torch is not installed."""

    def __init__(self, paths: list[Path]) -> None:
        try:
            from ...torch.pickled import array_of, pickled_tensors
        except ModuleNotFoundError as error:
            raise FailedPrecondition(
                f"{paths[0]} is in torch's own format, and {error.name} is not installed to read it: "
                "pip install 'probewire[torch]', here or on another machine for `probewire convert`"
            ) from None
        self._array_of = array_of
        self._tensors: dict[str, Any] = {}
        self.stored: dict[str, Stored] = {}
        for path in paths:
            for name, tensor in pickled_tensors(path).items():
                self._tensors[name] = tensor
                dtype = array_of(tensor.reshape(-1)[:0]).dtype
                if dtype not in _NAMES:
                    raise InvalidArgument(f"{path} stores {name} as {dtype}, which safetensors has no name for")
                self.stored[name] = Stored(_NAMES[dtype], tuple(tensor.shape))

    def get(self, name: str) -> Array:
        """See Tensors."""
        return self._array_of(self._tensors[name])


def bin_paths(folder: Path) -> list[Path]:
    """The files that hold a folder's weights. Raises InvalidArgument where one is missing."""
    if not (folder / _INDEX).is_file():
        return [folder / _SINGLE]
    weight_map: Any = json_object(folder / _INDEX).get("weight_map")
    names = sorted({str(name) for name in weight_map.values()}) if isinstance(weight_map, dict) else []
    if not names:
        raise InvalidArgument(f"{folder / _INDEX} has no weight_map; fetch it again")
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise InvalidArgument(f"{folder / _INDEX} lists {name!r}, which is missing; fetch it again")
    return [folder / name for name in names]


def check_listed(folder: Path, names: Iterable[str]) -> None:
    """Raise InvalidArgument where the index lists tensors that none of its files holds."""
    if not (folder / _INDEX).is_file():
        return
    listed: dict[str, Any] = json_object(folder / _INDEX).get("weight_map") or {}
    if absent := sorted(listed.keys() - set(names)):
        raise InvalidArgument(
            f"{folder / _INDEX} lists {len(absent)} tensors that its files do not hold, {absent[0]} first; fetch them again"
        )


def check_complete(source: Path, written: Path) -> None:
    """Raise InvalidArgument, in the name of its source, where a folder has not all weights of its architecture in their shapes.

    What else may be wrong with it is the load's to say.
    """
    from ...torch.load import check_complete as check  # there, as its tensors could be read

    try:
        check(written)
    except InvalidArgument as error:
        if not error.message.startswith(f"the checkpoint in {written} "):
            return
        raise InvalidArgument(error.message.replace(str(written), str(source), 1)) from error
    except (ArithmeticError, AttributeError, ImportError, LookupError, OSError, RuntimeError, TypeError, ValueError):
        return


def bin_plan(source: PickledTensors, keep: str) -> list[Planned]:
    """The same tensors; floats in the dtype `keep`, or as they are ("auto")."""
    return [copied(source, name, keep) for name in source.stored]
