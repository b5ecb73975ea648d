"""Which devices a name means, on a box whose GPUs are told to torch: none is here."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from probewire.backends import free_bytes
from probewire.backends.torch.devices.choice import choose_device, choose_devices, free_on, room_on, room_over
from probewire.protos.errors import FailedPrecondition, InvalidArgument

FREE = {0: 10, 1: 20}


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which the first has less room."""

    def free(device: Any) -> tuple[int, int]:
        return FREE[torch.device(device).index or 0], 100

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(FREE))
    monkeypatch.setattr(torch.cuda, "mem_get_info", free)
    monkeypatch.setattr("probewire.backends.torch.devices.choice.free_bytes", lambda: 1000)


@pytest.mark.usefixtures("two_gpus")
def test_auto_takes_a_second_gpu_only_where_it_must() -> None:
    assert choose_devices("auto", 9) == ("cuda",)
    assert choose_devices("auto", 11) == ("cuda:0", "cuda:1")
    assert choose_devices("auto", 1 << 40) == ("cuda:0", "cuda:1"), "never main memory: it would be slow, unasked"
    assert choose_devices("cuda:0", 11) == ("cuda:0",), "what was chosen is left alone"
    assert choose_devices("cuda:1, cpu", 1) == ("cuda:1", "cpu")


@pytest.mark.usefixtures("two_gpus")
def test_room_is_that_of_all_that_is_named() -> None:
    assert [room_on(name) for name in ("cuda", "cuda:0", "cuda:1", "cpu")] == [10, 10, 20, 1000]
    assert [free_on(name) for name in ("cuda:1", "cuda:0,cuda:1", "cuda:1,cpu", "auto")] == [20, 30, 1020, 30]
    assert free_bytes("torch", "cuda:0,cuda:1,cpu") == 1030


@pytest.mark.usefixtures("two_gpus")
def test_a_cache_over_several_is_full_where_the_first_is() -> None:
    def over(*names: str) -> int | None:
        return room_over(map(torch.device, names))

    assert over("cuda:0", "cuda:0", "cuda:1") == 10 * 3 // 2
    assert over("cuda:0", "cuda:1", "cuda:1", "cuda:1", "cuda:1") == 20 * 5 // 4
    assert over("cuda:1", "cpu") == 40


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("device", ["cuda:2", "cuda:0,cuda:2"])
def test_a_gpu_that_is_not_there(device: str) -> None:
    with pytest.raises(FailedPrecondition, match="cuda:2 was asked for, but this machine has 2 GPUs, cuda:0 to cuda:1"):
        choose_devices(device, 1)


def test_without_any() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert choose_devices("auto", 1 << 60) == ("cpu",)
    assert free_on("auto") == pytest.approx(room_on("cpu"), rel=0.5)
    with pytest.raises(InvalidArgument, match="use auto, cpu, cuda, cuda:N, or a list"):
        choose_device("gpu")
    with pytest.raises(FailedPrecondition, match="no usable CUDA"):
        choose_devices("cuda:0,cpu", 1)
