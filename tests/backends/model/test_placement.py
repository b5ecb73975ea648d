"""Which device each layer goes to: arithmetic over bytes, and the words of what is refused."""

from __future__ import annotations

import pytest

from probewire.backends.model.placement import Sizes, listed_devices, placed
from probewire.protos.errors import FailedPrecondition, InvalidArgument

GIB = 1 << 30
TEN = Sizes(layers=(GIB,) * 10, rest=2 * GIB, cache=0)


@pytest.mark.parametrize(
    ("text", "devices"),
    [
        ("cuda:0,cuda:1", ("cuda:0", "cuda:1")),
        ("cuda, cpu", ("cuda:0", "cpu")),
        ("cuda:2,cuda:0,cpu", ("cuda:2", "cuda:0", "cpu")),
    ],
)
def test_lists(text: str, devices: tuple[str, ...]) -> None:
    assert listed_devices(text) == devices


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cuda:0,tpu", "unknown device 'tpu' in 'cuda:0,tpu'; a list names GPUs"),
        ("cuda:0,auto", "unknown device 'auto'"),
        ("cuda:0,", "unknown device ''"),
        ("cuda:0,mps", "unknown device 'mps'"),
        ("cpu,cuda:0", "cpu stands before other devices"),
        ("cpu,cpu", "cpu stands before other devices"),
        ("cuda:1,cuda:1", "cuda:1 stands twice"),
        ("cuda,cuda:0", "cuda:0 stands twice"),
        ("cuda:0,cpu,cpu", "cpu stands before other devices"),
    ],
)
def test_other_lists_are_refused(text: str, told: str) -> None:
    with pytest.raises(InvalidArgument) as error:
        listed_devices(text)
    assert told in error.value.message
    assert "name" in error.value.message


def _counts(devices: tuple[str, ...], sizes: Sizes, **room: int | None) -> list[tuple[str, str, int]]:
    names = {"one": "cuda:0", "two": "cuda:1", "cpu": "cpu"}
    found = placed(devices, sizes, {names[name]: free for name, free in room.items()})
    homes = [(home.device, home.held) for home in found.homes]
    assert homes == sorted(homes, key=lambda home: (devices.index(home[0]), devices.index(home[1])))
    return [(*home, homes.count(home)) for home in dict.fromkeys(homes)]


def test_gpus_of_one_size_share_evenly_with_the_embedding() -> None:
    assert _counts(("cuda:0", "cuda:1"), TEN, one=80 * GIB, two=80 * GIB) == [
        ("cuda:0", "cuda:0", 4),
        ("cuda:1", "cuda:1", 6),
    ]


def test_a_larger_one_takes_more() -> None:
    assert _counts(("cuda:0", "cuda:1"), TEN, one=16 * GIB, two=48 * GIB) == [
        ("cuda:0", "cuda:0", 1),
        ("cuda:1", "cuda:1", 9),
    ]


def test_the_cache_counts_where_its_layer_computes() -> None:
    roomy = Sizes((GIB,) * 4, 0, 3 * GIB)
    assert _counts(("cuda:0", "cuda:1"), roomy, one=9 * GIB, two=20 * GIB) == [
        ("cuda:0", "cuda:0", 1),
        ("cuda:1", "cuda:1", 3),
    ]
    with pytest.raises(FailedPrecondition):
        _counts(("cuda:0", "cuda:1"), roomy, one=8 * GIB, two=8 * GIB)


def test_main_memory_holds_as_few_as_must() -> None:
    assert _counts(("cuda:0", "cpu"), TEN, one=80 * GIB, cpu=80 * GIB) == [("cuda:0", "cuda:0", 10)]
    # Two for the rest, one for the layer that is brought, a tenth more of all: 9.9 of 10 with six layers.
    assert _counts(("cuda:0", "cpu"), TEN, one=10 * GIB, cpu=None) == [
        ("cuda:0", "cuda:0", 6),
        ("cuda:0", "cpu", 4),
    ]
    assert _counts(("cuda:0", "cuda:1", "cpu"), TEN, one=4 * GIB, two=4 * GIB, cpu=80 * GIB) == [
        ("cuda:0", "cuda:0", 1),
        ("cuda:1", "cuda:1", 2),
        ("cuda:1", "cpu", 7),
    ]


def test_the_cache_of_waiting_layers_is_on_the_gpu() -> None:
    sizes = Sizes((GIB,) * 4, 0, GIB)
    assert _counts(("cuda:0", "cpu"), sizes, one=6 * GIB, cpu=80 * GIB) == [("cuda:0", "cpu", 4)]
    with pytest.raises(FailedPrecondition):
        _counts(("cuda:0", "cpu"), sizes, one=5 * GIB, cpu=80 * GIB)


def test_what_fits_nowhere_is_refused_with_figures() -> None:
    with pytest.raises(FailedPrecondition) as error:
        placed(("cuda:0", "cuda:1"), TEN, {"cuda:0": 4 * GIB, "cuda:1": 5 * GIB})
    for told in ("13.20 GiB", "cuda:0 4.00 GiB, cuda:1 5.00 GiB", "--device cuda:0,cuda:1,cpu", "--cache-tokens"):
        assert told in error.value.message
    with pytest.raises(FailedPrecondition) as error:  # nor does main memory hold what the GPU does not
        placed(("cuda:0", "cpu"), TEN, {"cuda:0": 5 * GIB, "cpu": 6 * GIB})
    assert "cpu 6.00 GiB" in error.value.message
    assert "--device" not in error.value.message


def test_the_words() -> None:
    found = placed(("cuda:0", "cuda:1", "cpu"), TEN, {"cuda:0": 4 * GIB, "cuda:1": 4 * GIB, "cpu": None})
    assert str(found) == (
        "layer 0 on cuda:0, layers 1 to 2 on cuda:1, layers 3 to 9 wait in main memory and compute on cuda:1; "
        "embedding and head on cuda:0"
    )
