"""Each edit on rows small enough to work out on paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probewire.backends.noise import noise_row
from probewire.backends.reference.edits import Around, edit_rows
from probewire.protos.edits import (
    Add,
    Affine,
    Clamp,
    Constant,
    Edit,
    Inline,
    LowRank,
    Noise,
    ProjectOut,
    Replace,
    Scale,
    Stored,
    Zeros,
)
from probewire.protos.errors import InvalidArgument
from probewire.protos.sites import Site
from probewire.protos.tensors import Tensor

Array = np.ndarray[Any, Any]

ROWS = np.array([[3.0, 4.0, 0.0], [0.0, 1.0, 2.0]])
HEADS = np.array([[[3.0, 4.0], [1.0, 0.0]]])
"""One row, two heads of two."""


def vector(*values: Any) -> Tensor:
    return Tensor.of(np.array(values, dtype=np.float32))


def edited(edit: Edit, rows: Array = ROWS, site: str = "resid_post.0", **around: Any) -> Array:
    return edit_rows(edit, rows, Around(site=Site.parse(site), positions=np.arange(len(rows)), **around))


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (Add(vector(1, 0, -1), 2.0), [[5, 4, -2], [2, 1, 0]]),
        # norms 5 and √5; the direction is (0, 1, 0)
        (Add(vector(0, 7, 0), 2.0, norm_match=True), [[3, 14, 0], [0, 1 + 2 * 5**0.5, 2]]),
        # of the part (3, 0) and (0, 2): norms 3 and 2
        (Add(vector(2, 0), 1.0, norm_match=True, units=(0, 2)), [[6, 4, 0], [2, 1, 2]]),
        (Add(vector(10, 20), 1.0, units=(2, 0)), [[23, 4, 10], [20, 1, 12]]),
        (Scale(-2.0), [[-6, -8, 0], [0, -2, -4]]),
        (Scale(0.0, units=(1,)), [[3, 0, 0], [0, 0, 2]]),
        (Replace(Zeros()), [[0, 0, 0], [0, 0, 0]]),
        (Replace(Zeros(), units=(0, 1)), [[0, 0, 0], [0, 0, 2]]),
        (Replace(Constant(vector(7, 8, 9))), [[7, 8, 9], [7, 8, 9]]),
        (Replace(Constant(vector(7)), units=(2,)), [[3, 4, 7], [0, 1, 7]]),
        # along (0.6, 0.8, 0) the rows have 5 and 0.8
        (ProjectOut(vector([3, 4, 0])), [[0, 0, 0], [-0.48, 0.36, 2]]),
        # two dependent directions span one
        (ProjectOut(vector([1, 1, 0], [2, 2, 0])), [[-0.5, 0.5, 0], [-0.5, 0.5, 2]]),
        (ProjectOut(vector([1, 0, 0], [1, 1, 0])), [[0, 0, 0], [0, 0, 2]]),
        # on the part (4, 0) and (1, 2), out of (1, 0)
        (ProjectOut(vector([5, 0]), units=(1, 2)), [[3, 0, 0], [0, 0, 2]]),
        (Clamp(min=0.5, max=2.5), [[2.5, 2.5, 0.5], [0.5, 1, 2]]),
        (Clamp(max=1.0, units=(0, 2)), [[1, 4, 0], [0, 1, 1]]),
        # coordinates 5 and 0.8 along (0.6, 0.8, 0), bounded to 1
        (Clamp(vector([6, 8, 0]), max=1.0), [[0.6, 0.8, 0], [0, 1, 2]]),
        (Clamp(vector([6, 8, 0]), min=1.0), [[3, 4, 0], [0.12, 1.16, 2]]),
        # (1, 0, 0), then (1, 1, 0) made orthogonal to it: (0, 1, 0)
        (Clamp(vector([2, 0, 0], [1, 1, 0]), min=-1.0, max=1.0), [[1, 1, 0], [0, 1, 2]]),
        # (3 + 2·0) + 1 and (0 + 2·2) + 1, twice along (0, 1, −1)
        (Affine(vector([1], [0], [2]), vector([0, 1, -1]), vector(1), 2.0), [[3, 12, -8], [0, 11, -8]]),
        # rank 2 on the part (0, 3) and (2, 0): its halves change places
        (Affine(vector([-1, 1], [1, -1]), vector([1, 0], [0, 1]), units=(2, 0)), [[0, 4, 3], [2, 1, 0]]),
    ],
)
def test_edit_of_rows(edit: Edit, expected: list[list[float]]) -> None:
    np.testing.assert_allclose(edited(edit), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (Add(vector(1, 2)), [[4, 6], [2, 2]]),
        (Add(vector([1, 2], [3, 4])), [[4, 6], [4, 4]]),
        (Add(vector([1, 2]), heads=(1,)), [[3, 4], [2, 2]]),
        (Add(vector([5], [6]), heads=(1, 0), units=(1,)), [[3, 10], [1, 5]]),
        # every head is a row of its own: norms 5 and 1
        (Add(vector(0, 1), 1.0, norm_match=True), [[3, 9], [1, 1]]),
        (Scale(2.0, heads=(0,)), [[6, 8], [1, 0]]),
        (Replace(Constant(vector([9, 8], [7, 6])), heads=(1, 0)), [[7, 6], [9, 8]]),
        (ProjectOut(vector([3, 4])), [[0, 0], [0.64, -0.48]]),
        (Clamp(vector([1, 0]), max=2.0, heads=(0,)), [[2, 4], [1, 0]]),
    ],
)
def test_edit_of_heads(edit: Edit, expected: list[list[float]]) -> None:
    np.testing.assert_allclose(edited(edit, HEADS, "z.0"), [expected], atol=1e-6)


def test_inline_rows_have_the_width_of_the_part_and_captured_ones_of_the_site() -> None:
    source = np.array([[10.0, 20.0, 30.0], [40.0, 50.0, 60.0]])
    inline = Replace(Inline(Tensor.of(source[:, :2])), units=(2, 0))
    np.testing.assert_array_equal(edited(inline, source=source[:, :2]), [[20, 4, 10], [50, 1, 40]])
    from_capture = Replace(Stored("an-id"), units=(2, 0))
    np.testing.assert_array_equal(edited(from_capture, source=source), [[10, 4, 30], [40, 1, 60]])


def test_replacing_rows_must_fit() -> None:
    for edit in (Replace(Stored("an-id")), Replace(Stored("an-id"), units=(0,)), Replace(Inline(vector(*ROWS)))):
        with pytest.raises(InvalidArgument, match="replace brings"):
            edited(edit, source=np.zeros((2, 4)))


def test_noise_is_one_draw_a_position_of_the_whole_row() -> None:
    site = Site.parse("z.3")
    rows = np.zeros((2, 2, 2))
    positions = np.array([5, 9])
    whole = edit_rows(Noise(2.0, seed=7), rows, Around(site=site, positions=positions))
    for row, position in zip(whole, positions, strict=True):
        np.testing.assert_array_equal(row, 2.0 * noise_row(7, site, int(position), (2, 2)))
    part = edit_rows(Noise(2.0, seed=7, heads=(1,), units=(0,)), rows, Around(site=site, positions=positions))
    np.testing.assert_array_equal(part[:, 1, 0], whole[:, 1, 0])
    part[:, 1, 0] = 0
    assert not part.any()


def test_low_rank_reads_what_the_linear_module_read() -> None:
    edit = LowRank(a=vector([1], [2]), b=vector([0, 1, 10]), alpha=0.5)
    read = np.array([[1.0, 1.0], [0.0, 2.0]])  # in·A = 3 and 4
    np.testing.assert_array_equal(edited(edit, linear_input=read), [[3, 5.5, 15], [0, 3, 22]])


def test_leace_is_an_affine_edit() -> None:
    """x − L R (x − μ) with R x = x₀/2, L = (2, 0, 1), μ = (1, 1, 0): unit 0 becomes its mean in every row."""
    left, right, mean = np.array([[2.0], [0.0], [1.0]]), np.array([[0.5, 0.0, 0.0]]), np.array([1.0, 1.0, 0.0])
    edit = Affine(Tensor.of(right.T), Tensor.of(-left.T), Tensor.of(-right @ mean))
    np.testing.assert_allclose(edited(edit), [[1, 4, -1], [1, 1, 2.5]])
    np.testing.assert_allclose(edited(edit), ROWS - (ROWS - mean) @ right.T @ left.T)


def test_loreft_is_an_affine_edit() -> None:
    """h + Rᵀ(W h + b − R h), R = (0.6, 0.8, 0), W = (1, 0, 0), b = 2: 3 + 2 − 5 = 0 and 0 + 2 − 0.8 = 1.2."""
    rotation, weight, bias = np.array([[0.6, 0.8, 0.0]]), np.array([[1.0, 0.0, 0.0]]), np.array([2.0])
    edit = Affine(Tensor.of((weight - rotation).T), Tensor.of(rotation), Tensor.of(bias))
    np.testing.assert_allclose(edited(edit), [[3, 4, 0], [0.72, 1.96, 2]], rtol=1e-7)


def test_an_affine_map_goes_head_by_head() -> None:
    edit = Affine(vector([1], [1]), vector([1, 0]))
    np.testing.assert_array_equal(edited(edit, HEADS, "z.0"), [[[10, 4], [2, 0]]])
    one = Affine(vector([1], [1]), vector([1, 0]), heads=(0,))
    np.testing.assert_array_equal(edited(one, HEADS, "z.0"), [[[10, 4], [1, 0]]])


VISIBLE = np.array([[True, False, False], [True, True, False]])


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (Scale(2.0), [[2, -np.inf, -np.inf], [6, 8, -np.inf]]),
        (Scale(0.0, units=(1,)), [[1, -np.inf, -np.inf], [3, 0, -np.inf]]),
        # key 9 does not exist yet
        (Add(vector(5, 6, 7), units=(1, 9, 0)), [[8, -np.inf, -np.inf], [10, 9, -np.inf]]),
        (Replace(Zeros()), [[0, -np.inf, -np.inf], [0, 0, -np.inf]]),
        (Clamp(max=3.5), [[1, -np.inf, -np.inf], [3, 3.5, -np.inf]]),
    ],
)
def test_edits_never_reach_masked_scores(edit: Edit, expected: list[list[float]]) -> None:
    scores = np.array([[[1.0, -np.inf, -np.inf]], [[3.0, 4.0, -np.inf]]])  # [row, head, key]
    np.testing.assert_array_equal(edited(edit, scores, "attn_scores.0", visible=VISIBLE)[:, 0], expected)


def test_edits_never_reach_masked_probabilities() -> None:
    probs = np.array([[[1.0, 0.0, 0.0]], [[0.25, 0.75, 0.0]]])
    new = edited(Add(vector(0.5, 0.5), units=(1, 2)), probs, "attn_probs.0", visible=VISIBLE)
    np.testing.assert_array_equal(new[:, 0], [[1, 0, 0], [0.25, 1.25, 0]])


@pytest.mark.parametrize(
    "edit",
    [
        Add(vector(1, 1, 1)),
        Add(vector(1), units=(0,), norm_match=True),
        Clamp(vector([1, 0, 0]), max=1.0),
        Noise(1.0),
        ProjectOut(vector([1, 0, 0])),
        LowRank(vector([1], [1]), vector([1, 1, 1])),
        Affine(vector([1], [1], [1]), vector([1, 1, 1])),
        Replace(Constant(vector(1, 1, 1))),
    ],
)
def test_what_spans_the_key_axis_is_refused_there(edit: Edit) -> None:
    with pytest.raises(InvalidArgument):
        edited(edit, np.zeros((2, 1, 3)), "attn_scores.0", visible=VISIBLE)


@pytest.mark.parametrize(
    ("edit", "site", "said"),
    [
        (Add(vector(1, 1)), "resid_post.0", "part needs"),
        (Add(vector(1, 1, 1), heads=(0,)), "resid_post.0", "no heads"),
        (Scale(2.0, units=(3,)), "resid_post.0", "outside"),
        (ProjectOut(vector([1, 1])), "resid_post.0", "wide"),
        (Clamp(vector([1, 1, 0], [2, 2, 0]), max=1.0), "resid_post.0", "dependent"),
        (Clamp(vector(*np.eye(3), [1, 1, 1]), max=1.0), "resid_post.0", "at most 3"),
        (LowRank(vector([1], [1]), vector([1, 1, 1])), "resid_post.0", "no single linear module"),
        (Affine(vector([1], [1]), vector([1, 1])), "resid_post.0", "3 wide"),
        (Scale(2.0), "expert_weights.0", "captured, not edited"),
    ],
)
def test_refusals(edit: Edit, site: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        edited(edit, ROWS, site)


def test_norm_match_refuses_a_head_without_direction() -> None:
    with pytest.raises(InvalidArgument, match="vector that is zero"):
        edited(Add(vector([1, 0], [0, 0]), norm_match=True), HEADS, "z.0")
