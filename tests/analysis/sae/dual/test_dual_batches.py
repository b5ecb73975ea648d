"""Batches of two corpora: each row where its label says, none lost, and going on where they stood."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probewire.analysis.sae.data.batches import ArrayBatches
from probewire.analysis.sae.dual.dual_batches import DualBatches, split_size
from probewire.protos.errors import FailedPrecondition, InvalidArgument
from tests.analysis.sae.dual.conftest import Two


def made(n_forget: int = 3, n_retain: int = 5) -> DualBatches:
    forget, retain = np.arange(14.0).reshape(7, 2), 100 + np.arange(22.0).reshape(11, 2)
    return DualBatches(ArrayBatches(forget, n_forget, 0), ArrayBatches(retain, n_retain, 0))


def test_labels_say_which_corpus_a_row_is_of() -> None:
    batches = made()
    seen: list[list[float]] = [[], []]
    for _ in range(7 * 11):
        batch = next(batches)
        assert batch.shape == (8, 2)
        assert torch.equal(batch[:, 0] < 100, batches.labels)
        seen[0] += batch[batches.labels, 0].tolist()
        seen[1] += batch[~batches.labels, 0].tolist()
    assert {seen[0].count(float(value)) for value in range(0, 14, 2)} == {3 * 11}
    assert {seen[1].count(100.0 + value) for value in range(0, 22, 2)} == {5 * 7}


def test_it_goes_on_with_the_batch_that_would_have_come_next() -> None:
    batches = made()
    for _ in range(4):
        next(batches)
    state = batches.state_dict()
    expected = [next(batches) for _ in range(5)]
    again = made()
    again.load_state_dict(state)
    assert all(torch.equal(one, next(again)) for one in expected)
    with pytest.raises(FailedPrecondition, match="other batches"):
        made(4, 5).load_state_dict(state)
    with pytest.raises(FailedPrecondition, match="than two corpora's"):
        again.load_state_dict(state["forget"])


def test_what_cannot_be_one_batch_is_refused(two: Two) -> None:
    wide = ArrayBatches(np.ones((4, 3)), 2)
    with pytest.raises(InvalidArgument, match="width 2 and retain rows 3"):
        DualBatches(ArrayBatches(np.ones((4, 2)), 2), wide)
    sites = [ArrayBatches(np.ones((4, 2)), 2, manifest={"site": site}) for site in ("resid_post.1", "resid_post.2")]
    with pytest.raises(InvalidArgument, match=r"differ in site: resid_post\.1 and resid_post\.2"):
        DualBatches(sites[0], sites[1])
    assert two.batches().manifest["data_hash"] != made().manifest["data_hash"]
    assert [split_size(512), split_size(10, 0.01), split_size(3, 0.99)] == [(256, 256), (1, 9), (2, 1)]
    for size, ratio in ((1, 0.5), (8, 0.0), (8, 1.0)):
        with pytest.raises(InvalidArgument, match="ratio is a share"):
            split_size(size, ratio)
