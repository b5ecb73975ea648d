"""Whether config.json and the headers of the weights tell of the same model, before a byte of a weight is read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from ...protos.errors import InvalidArgument
from .quantised import packed_tensors, scheme_of
from .quantised.packed import Stored
from .text_config import check_compared
from .tower import Tower, tower_of
from .weight_file import WeightFile

__all__ = ["check_agreement", "check_layers"]

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""What configs call the number of layers."""
_SOME = 4


def check_agreement(folder: Path, config: Mapping[str, Any], weights: Iterable[WeightFile]) -> None:
    """Raise InvalidArgument for a wrapper without one text model that was compared with the whole, for weights that are not
    stored as the config says, and where whole layers are missing.
    """
    stored = {name: Stored(file.dtypes[name], shape) for file in weights for name, shape in file.shapes.items()}
    tower = tower_of(config, stored)
    if tower is not None:
        check_compared(tower)
        stored = {new: stored[old] for old, new in tower.names.items()}
    packed_tensors(scheme_of(folder), stored)
    _check_layers(folder, config, tower, stored)


def check_layers(folder: Path, config: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raise InvalidArgument where whole layers are missing among the names of a folder's weights, or a wrapper's text model."""
    tower = tower_of(config, names)
    _check_layers(folder, config, tower, names if tower is None else tower.names.values())


def _check_layers(folder: Path, config: Mapping[str, Any], tower: Tower | None, names: Iterable[str]) -> None:
    """A layer may hold anything, but not nothing."""
    lists = _lists(names)
    if not lists:
        return
    found = max(lists, key=len)
    # A model that runs through several lists, or through one again and again, counts what it runs through.
    told = _told(config, tower) if len(lists) == 1 else 0
    n_layers = max(told, 1 + max(found))
    absent = [layer for layer in range(n_layers) if layer not in found]
    if absent:
        some = ", ".join(map(str, absent[:_SOME])) + (", …" if len(absent) > _SOME else "")
        raise InvalidArgument(
            f"the checkpoint in {folder} holds no weight of {len(absent)} of its {n_layers} layers ({some}); "
            "fetch the files that are missing, or take the config.json that came with the weights"
        )


def _lists(names: Iterable[str]) -> list[set[int]]:
    """Indices of the layers of each list of modules."""
    lists: dict[str, set[int]] = {}
    for name in names:
        if (match := _LAYER.search(name)) and not name.startswith("mtp."):  # what guesses tokens further ahead
            lists.setdefault(name[: match.start(1)], set()).add(int(match[1]))
    return list(lists.values())


def _told(config: Mapping[str, Any], tower: Tower | None) -> int:
    """How many layers a config speaks of; 0 where it does not say, or says two numbers."""
    text: Any = config.get("text_config")
    place = cast("Mapping[str, Any]", text) if tower is not None and isinstance(text, dict) else config
    counts = {place[name] for name in _COUNTS if isinstance(place.get(name), int)}
    return counts.pop() if len(counts) == 1 else 0
