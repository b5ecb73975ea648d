"""The devices that a model is put on, and what they have free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch

from ....protos.errors import FailedPrecondition, InvalidArgument
from ...model.footprint import free_bytes
from ...model.placement import MAIN_MEMORY, listed_devices

__all__ = ["choose_device", "choose_devices", "free_on", "room_on", "room_over"]


def choose_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises FailedPrecondition for a device that is not here."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else MAIN_MEMORY
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise InvalidArgument(
            f"unknown device {device!r}; use auto, cpu, cuda, cuda:N, or a list: cuda:0,cuda:1 or cuda:0,cpu"
        ) from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise FailedPrecondition(
            f"device {device} was asked for, but this machine has no usable CUDA; use --device cpu"
        )
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise FailedPrecondition(f"device {device} was asked for, but this machine has {_gpus()}")
    return chosen


def choose_devices(device: str, need: int) -> tuple[str, ...]:
    """All the devices of a list, or one. `auto` takes every GPU where the first has no room for `need` bytes."""
    if "," in device:
        names = listed_devices(device)
        for name in names:
            choose_device(name)
        return names
    first = choose_device(device)
    if device == "auto" and first.type == "cuda" and torch.cuda.device_count() > 1:
        free = torch.cuda.mem_get_info(first)[0]
        if need > free:
            return tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
    return (str(first),)


def free_on(device: str) -> int | None:
    """Free bytes of all that a device name or a list means, main memory included; None where nobody knows."""
    names: Sequence[str] = listed_devices(device) if "," in device else (device,)
    if device == "auto" and torch.cuda.is_available():
        names = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    found = [room_on(name) for name in names]
    return None if None in found else sum(n for n in found if n is not None)


def room_on(device: str) -> int | None:
    """Free bytes of one device; None where nobody knows."""
    chosen = choose_device(device)
    return torch.cuda.mem_get_info(chosen)[0] if chosen.type == "cuda" else free_bytes()


def room_over(layers: Iterable[torch.device]) -> int | None:
    """Bytes of a cache, of which each layer holds an equal part where it lies, before one device is full; None where nobody
    knows."""
    shares = Counter(map(str, layers))
    rooms = {name: room_on(name) for name in shares}
    found = [room * shares.total() // shares[name] for name, room in rooms.items() if room is not None]
    return min(found) if len(found) == len(rooms) else None


def _gpus() -> str:
    n = torch.cuda.device_count()
    return "one GPU, cuda:0" if n == 1 else f"{n} GPUs, cuda:0 to cuda:{n - 1}"
