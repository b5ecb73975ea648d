"""Batches of an array: every row once an epoch, resumed to the row, and foreign states refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from probewire.analysis.sae.data.batches import ArrayBatches, Batches
from probewire.protos.errors import FailedPrecondition, InvalidArgument

ROWS = np.arange(33, dtype=np.float32).reshape(11, 3)


def _firsts(batches: Batches, n: int) -> list[int]:
    """Which rows of ROWS the next n batches hold."""
    return [int(row[0]) // 3 for _ in range(n) for row in next(batches).tolist()]


def test_every_row_comes_once_an_epoch_and_batches_straddle_epochs() -> None:
    found = _firsts(ArrayBatches(ROWS, 4, seed=1), 11)
    epochs = [found[start : start + 11] for start in range(0, 44, 11)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert _firsts(ArrayBatches(ROWS, 4, shuffle=False), 3) == [*range(11), 0]


def test_a_batch_may_be_larger_than_the_array() -> None:
    assert sorted(_firsts(ArrayBatches(ROWS, 22), 1)) == sorted([*range(11)] * 2)


@pytest.mark.parametrize("taken", [0, 1, 2, 3, 7])
def test_a_resumed_iteration_goes_on_with_the_very_next_batch(taken: int) -> None:
    first = ArrayBatches(ROWS, 4, seed=5)
    _firsts(first, taken)
    state = json.loads(json.dumps(first.state_dict()))
    again = ArrayBatches(ROWS, 4, seed=5)
    _firsts(again, 2)
    again.load_state_dict(state)
    assert _firsts(again, 6) == _firsts(first, 6)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (ArrayBatches(ROWS, 5), "batch_size"),
        (ArrayBatches(ROWS, 4, seed=1), "seed"),
        (ArrayBatches(ROWS, 4, shuffle=False), "shuffle"),
        (ArrayBatches(ROWS + 1, 4), "data_hash"),
    ],
)
def test_states_of_other_batches_are_refused(other: ArrayBatches, named: str) -> None:
    with pytest.raises(FailedPrecondition, match=named):
        ArrayBatches(ROWS, 4).load_state_dict(other.state_dict())


@pytest.mark.parametrize("change", [{"row": 12}, {"row": None}, {"epoch": -1}, {"row": True}])
def test_broken_states_are_refused(change: dict[str, object]) -> None:
    batches = ArrayBatches(ROWS, 4)
    with pytest.raises(FailedPrecondition):
        batches.load_state_dict({**batches.state_dict(), **change})


def test_bfloat16_tensors_are_taken_and_batches_are_copies() -> None:
    import torch

    batches = ArrayBatches(torch.from_numpy(ROWS).bfloat16(), 11, shuffle=False)
    first = next(batches)
    assert first.dtype == torch.float32
    np.testing.assert_array_equal(first.numpy(), ROWS)
    first += 1
    np.testing.assert_array_equal(next(batches).numpy(), ROWS)
    assert batches.manifest["n_tokens"] == 11


@pytest.mark.parametrize(
    ("array", "size", "named"),
    [
        (ROWS[0], 4, "shape"),
        (ROWS[:0], 4, "shape"),
        (np.where(ROWS == 4, np.nan, ROWS), 4, "1 of 11 rows hold NaN"),
        (ROWS, 0, "batch_size"),
        (ROWS, 2.5, "batch_size"),
    ],
)
def test_arrays_that_cannot_be_trained_on_are_refused(array: np.ndarray, size: int, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        ArrayBatches(array, size)


@pytest.mark.parametrize("seed", [-1, 0.5, True])
def test_seeds_are_whole_numbers(seed: int) -> None:
    with pytest.raises(InvalidArgument, match="seed is a whole number"):
        ArrayBatches(ROWS, 4, seed)
