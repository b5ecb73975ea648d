"""Which layers of a model lie on which device, where one device does not hold them all."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from ...protos.errors import FailedPrecondition, InvalidArgument
from .footprint import HEADROOM

__all__ = ["LayerHome", "Placement", "Sizes", "listed_devices", "placed"]

_GPU = re.compile(r"cuda(:\d+)?")
MAIN_MEMORY = "cpu"


@dataclass(frozen=True, slots=True)
class LayerHome:
    """Of one layer."""

    device: str
    """Where it computes, and where its keys and values lie."""
    held: str
    """Where its weights lie between forwards: `device`, or main memory."""

    @property
    def waits(self) -> bool:
        """Its weights come to the device for each forward."""
        return self.held != self.device


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes."""

    layers: tuple[int, ...]
    """Weights of each layer."""
    rest: int
    """All other weights: embedding, head, final norm."""
    cache: int
    """Keys and values of one layer."""


@dataclass(frozen=True, slots=True)
class Placement:
    """All layers' homes. What is no layer, and what comes and goes, is on the first device."""

    devices: tuple[str, ...]
    homes: tuple[LayerHome, ...]

    @property
    def first(self) -> str:
        """Where token ids go in, and rows of the final norm and logits come out."""
        return self.devices[0]

    def __str__(self) -> str:
        parts: list[str] = []
        start = 0
        for home, group in groupby(self.homes):
            stop = start + len(list(group))
            where = f"wait in main memory and compute on {home.device}" if home.waits else f"on {home.device}"
            parts.append(f"{_span(start, stop)} {where}")
            start = stop
        return f"{', '.join(parts)}; embedding and head on {self.first}"


def listed_devices(text: str) -> tuple[str, ...]:
    """The devices of a list such as "cuda:0,cuda:1" or "cuda:0,cpu". Raises InvalidArgument for any other list."""
    names = tuple(name.strip() for name in text.split(","))
    allowed = "a list names GPUs (cuda:0,cuda:1), and last, if at all, cpu, where layers wait that fit on none"
    for i, name in enumerate(names):
        if not _GPU.fullmatch(name) and name != MAIN_MEMORY:
            raise InvalidArgument(f"unknown device {name!r} in {text!r}; {allowed}")
        if name == MAIN_MEMORY and (i == 0 or i < len(names) - 1):
            raise InvalidArgument(f"cpu stands before other devices in {text!r}; {allowed}")
    full = ["cuda:0" if name == "cuda" else name for name in names]
    if twice := sorted({name for name in full if full.count(name) > 1}):
        raise InvalidArgument(f"{twice[0]} stands twice in {text!r}; name each device once")
    return tuple(full)


def placed(devices: Sequence[str], sizes: Sizes, room: Mapping[str, int | None]) -> Placement:
    """Layers over GPUs in proportion to their free bytes; in main memory as few as must, the last ones.

    `room`: free bytes by device (None: not known). Raises FailedPrecondition, with figures, where they do not fit.
    """
    gpus = [device for device in devices if device != MAIN_MEMORY]
    most_waiting = len(sizes.layers) if MAIN_MEMORY in devices else 0
    for n_waiting in range(most_waiting + 1):
        homes = _homes(gpus, sizes, room, n_waiting)
        held = _with_headroom(sum(sizes.layers[len(sizes.layers) - n_waiting :]))
        free = room.get(MAIN_MEMORY)
        if n_waiting and free is not None and held > free:
            break
        if homes is not None:
            return Placement(tuple(devices), homes)
    raise FailedPrecondition(_too_large(devices, sizes, room))


def _homes(
    gpus: Sequence[str], sizes: Sizes, room: Mapping[str, int | None], n_waiting: int
) -> tuple[LayerHome, ...] | None:
    """With so many layers in main memory; None where that does not fit."""
    here = sizes.layers[: len(sizes.layers) - n_waiting]
    taken = dict.fromkeys(gpus, 0)
    taken[gpus[0]] += sizes.rest
    if n_waiting:  # one layer's weights at a time, and the cache of all of them
        taken[gpus[-1]] += max(sizes.layers[-n_waiting:]) + n_waiting * sizes.cache
    counts = _most_even(gpus, [size + sizes.cache for size in here], taken, room)
    if counts is None:
        return None
    on = [LayerHome(gpu, gpu) for gpu, count in zip(gpus, counts, strict=True) for _ in range(count)]
    return (*on, *[LayerHome(gpus[-1], MAIN_MEMORY)] * n_waiting)


def _most_even(
    gpus: Sequence[str], layers: Sequence[int], taken: Mapping[str, int], room: Mapping[str, int | None]
) -> list[int] | None:
    """How many layers each GPU takes, so that the fullest is as little full as can be; None where they do not fit."""
    free = {gpu: room.get(gpu) for gpu in gpus}
    known = [n for n in free.values() if n is not None]
    unknown = max(known, default=0) or _with_headroom(sum(layers) + sum(taken.values()))
    bounds = {gpu: unknown if n is None else n for gpu, n in free.items()}
    best = _filled(gpus, layers, taken, bounds, 1.0)
    low, high = 0.0, 1.0
    while best is not None and high - low > 1e-3:
        middle = (low + high) / 2
        found = _filled(gpus, layers, taken, bounds, middle)
        low, high, best = (low, middle, found) if found is not None else (middle, high, best)
    return best


def _filled(
    gpus: Sequence[str], layers: Sequence[int], taken: Mapping[str, int], bounds: Mapping[str, int], share: float
) -> list[int] | None:
    """How many layers each GPU takes, in order, when none may be fuller than a share of its room."""
    counts: list[int] = []
    start = 0
    for gpu in gpus:
        held, stop = taken[gpu], start
        if _with_headroom(held) > share * bounds[gpu]:
            return None
        while stop < len(layers) and _with_headroom(held + layers[stop]) <= share * bounds[gpu]:
            held += layers[stop]
            stop += 1
        counts.append(stop - start)
        start = stop
    return counts if start == len(layers) else None


def _with_headroom(n_bytes: int) -> int:
    return round(n_bytes * (1 + HEADROOM))


def _too_large(devices: Sequence[str], sizes: Sizes, room: Mapping[str, int | None]) -> str:
    need = _with_headroom(sum(sizes.layers) + sizes.rest + sizes.cache * len(sizes.layers))
    free = ", ".join(f"{device} {_gib(room.get(device))}" for device in devices)
    offload = "" if MAIN_MEMORY in devices else f", or let layers wait in main memory: --device {','.join(devices)},cpu"
    return (
        f"the model takes about {_gib(need)} (its largest layer {_gib(max(sizes.layers))}, embedding and head "
        f"{_gib(sizes.rest)}, KV cache {_gib(sizes.cache * len(sizes.layers))}), and free are: {free}; name more "
        f"devices, choose a smaller dtype, or lower --cache-tokens{offload}"
    )


def _gib(n_bytes: int | None) -> str:
    return "an unknown number" if n_bytes is None else f"{n_bytes / 2**30:.2f} GiB"


def _span(start: int, stop: int) -> str:
    return f"layer {start}" if stop - start == 1 else f"layers {start} to {stop - 1}"
