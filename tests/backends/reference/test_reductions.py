"""What a capture sends, on rows small enough to work out on paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probewire.backends.reference.reductions import captured_rows
from probewire.protos.errors import InvalidArgument
from probewire.protos.sites import Site
from probewire.protos.spec import Capture, Gather, Last, Mean, NextLogprob, Norm, Project, Reduction, TopK
from probewire.protos.tensors import Tensor

ROWS = np.array([[3.0, -4.0, 0.0], [1.0, 2.0, 2.0]])
POSITIONS = [4, 6]
TOKENS = [0] * 5 + [2, 0, 1]
"""Position 5 holds token 2, position 7 token 1."""


def send(reduce: Reduction | None, site: str = "logits", dtype: str | None = None) -> dict[str, Any]:
    return captured_rows(Capture(reduce=reduce, dtype=dtype), Site.parse(site), ROWS, POSITIONS, TOKENS)


@pytest.mark.parametrize(
    ("reduce", "positions", "expected", "dtype"),
    [
        (None, (4, 6), ROWS, "float64"),
        (Last(), (6,), [[1, 2, 2]], "float64"),
        (Mean(), (), [[2, -1, 1]], "float32"),
        (Norm(), (4, 6), [5, 3], "float32"),
        (Project(Tensor.of([[1.0, 1.0, 1.0], [0.0, 2.0, 0.0]])), (4, 6), [[-1, -8], [5, 4]], "float32"),
        (Gather((2, 0)), (4, 6), [[0, 3], [2, 1]], "float32"),
    ],
)
def test_reduction(reduce: Reduction | None, positions: tuple[int, ...], expected: Any, dtype: str) -> None:
    sent = send(reduce)[""]
    assert sent.positions == positions
    assert sent.values.dtype == dtype
    np.testing.assert_array_equal(sent.values, expected)


def test_top_k_is_sorted_and_equals_go_by_index() -> None:
    sent = send(TopK(2), dtype="float16")
    np.testing.assert_array_equal(sent["value"].values, [[3, 0], [2, 2]])
    np.testing.assert_array_equal(sent["index"].values, [[0, 2], [1, 2]])
    assert sent["value"].values.dtype == np.float16
    assert sent["index"].values.dtype == np.int64


def test_next_logprob_is_of_the_token_that_follows() -> None:
    sent = send(NextLogprob())[""]
    assert sent.positions == (4, 6)
    expected = [0 - np.log(np.exp([3, -4, 0]).sum()), 2 - np.log(np.exp([1, 2, 2]).sum())]
    np.testing.assert_allclose(sent.values, expected, rtol=1e-6)


def test_next_logprob_with_the_likeliest() -> None:
    """Equals go by index; the token's own is the same number where it is among them."""
    sent = send(NextLogprob(top=2))
    assert {part: found.positions for part, found in sent.items()} == dict.fromkeys(("", "value", "index"), (4, 6))
    logs = [np.log(np.exp([3, -4, 0]).sum()), np.log(np.exp([1, 2, 2]).sum())]
    np.testing.assert_array_equal(sent["index"].values, [[0, 2], [1, 2]])
    np.testing.assert_allclose(
        sent["value"].values, [[3 - logs[0], 0 - logs[0]], [2 - logs[1], 2 - logs[1]]], rtol=1e-6
    )
    assert sent[""].values.tolist() == sent["value"].values[:, [1, 0]].diagonal().tolist()


def test_the_last_row_has_no_token_that_follows() -> None:
    sent = captured_rows(Capture(reduce=NextLogprob()), Site.parse("logits"), ROWS, [4, 7], TOKENS)[""]
    assert sent.positions == (4,)
    assert sent.values.shape == (1,)


def test_heads_are_reduced_one_by_one() -> None:
    rows = np.array([[[3.0, 4.0], [0.0, 1.0]]])
    z = Site.parse("z.0")
    norms = captured_rows(Capture(reduce=Norm()), z, rows, [0], [0])[""].values
    np.testing.assert_array_equal(norms, [[5, 1]])
    top = captured_rows(Capture(reduce=TopK(1)), z, rows, [0], [0])
    np.testing.assert_array_equal(top["index"].values, [[[1], [1]]])


@pytest.mark.parametrize("reduce", [Last(), Mean()])
def test_no_rows_have_no_last_and_no_mean(reduce: Reduction) -> None:
    assert captured_rows(Capture(reduce=reduce), Site.parse("embed"), ROWS[:0], [], TOKENS) == {}


def test_no_rows_are_sent_as_none() -> None:
    sent = captured_rows(Capture(), Site.parse("embed"), ROWS[:0], [], TOKENS)[""]
    assert sent.positions == ()
    assert sent.values.shape == (0, 3)


@pytest.mark.parametrize("reduce", [Gather((0,)), NextLogprob()])
def test_reductions_of_logits_only(reduce: Reduction) -> None:
    with pytest.raises(InvalidArgument, match="reads logits"):
        send(reduce, "resid_post.0")


def test_attention_is_not_reduced() -> None:
    with pytest.raises(InvalidArgument, match="key axis"):
        send(Norm(), "attn_probs.0")
