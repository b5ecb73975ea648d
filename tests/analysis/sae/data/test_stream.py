"""Batches on their way into a training: what cannot be trained on is refused with its step, and looking ahead takes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from probewire.analysis.sae.data.batches import ArrayBatches
from probewire.analysis.sae.data.stream import Stream
from probewire.analysis.sae.training.training import train
from probewire.clients import FailedPrecondition, InvalidArgument
from tests.analysis.sae.planted_rows import D_IN, SIZE, Failing, batches, rows
from tests.analysis.sae.training.test_training import config


def test_looking_ahead_takes_nothing() -> None:
    expected = [next(source) for source in [batches()] for _ in range(6)]
    stream = Stream(batches(), SIZE)
    assert torch.equal(stream.take(), expected[0])
    assert all(map(torch.equal, stream.peek(3), expected[1:4]))
    assert all(map(torch.equal, stream.peek(2), expected[1:3]))
    for number in range(1, 6):
        assert torch.equal(stream.take(), expected[number])
        resumed = Stream(batches(), SIZE)
        resumed.resume(number + 1, stream.state)
        if number < 5:
            assert torch.equal(resumed.take(), expected[number + 1])


def test_the_state_is_of_what_was_taken_not_of_what_was_seen() -> None:
    stream = Stream(batches(), SIZE)
    start = batches().state_dict()
    stream.peek(4)
    assert stream.state == start


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (float("nan"), "1 of 32 rows of the batch of step 7 hold NaN or infinity"),
        (float("-inf"), "1 of 32 rows of the batch of step 7 hold NaN or infinity"),
    ],
)
def test_data_that_is_not_finite_is_refused(bad: float, said: str, tmp_path: Path) -> None:
    class Spoilt(ArrayBatches):
        reads = 0

        def __next__(self) -> torch.Tensor:
            batch = super().__next__()
            if self.reads == 7:
                batch[3, 5] = bad
            self.reads += 1
            return batch

    with pytest.raises(InvalidArgument, match=said):
        train(Spoilt(rows(), SIZE), config(), tmp_path / "run", progress=False)


def test_large_finite_data_is_no_infinity(tmp_path: Path) -> None:
    source = ArrayBatches(np.full((SIZE, D_IN), 3e38, dtype=np.float32), SIZE)
    with pytest.raises(FailedPrecondition, match="the loss is inf at step 0; lower lr"):
        train(source, config(), tmp_path / "run", progress=False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda batch: batch[:, :5], r"the batch of step 0 has shape \[32, 5\]; .* \[32, 16\]"),
        (lambda batch: batch[:0], r"the batch of step 0 has shape \[0, 16\]"),
        (lambda batch: batch.half(), "the batch of step 0 is torch.float16; batches are float32 tensors"),
        (lambda batch: batch.numpy(), "the batch of step 0 is float32; batches are float32 tensors"),
    ],
)
def test_batches_of_another_shape_are_refused(change: Callable[[Any], Any], said: str, tmp_path: Path) -> None:
    class Changed(ArrayBatches):
        def __next__(self) -> torch.Tensor:
            return change(super().__next__())

    with pytest.raises(InvalidArgument, match=said):
        train(Changed(rows(), SIZE), config(), tmp_path / "run", progress=False)


def test_data_that_ends_is_refused(tmp_path: Path) -> None:
    class Ending(Failing):
        def __next__(self) -> torch.Tensor:
            try:
                return super().__next__()
            except ConnectionError:
                raise StopIteration from None

    with pytest.raises(FailedPrecondition, match="the batches ended before step 5"):
        train(Ending(batches(), 5), config(), tmp_path / "run", progress=False)


def test_another_batch_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="the batches have 32 rows and the config says batch_size 64"):
        train(batches(), config(batch_size=64), tmp_path / "run", progress=False)
