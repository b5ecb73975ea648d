"""Frames of several steps become whole arrays."""

import numpy as np
import pytest

from probewire.protos.errors import Internal
from probewire.protos.model import TensorFrame
from probewire.protos.tensors import Tensor
from probewire.protos.wire.assemble import CaptureKey, assemble


def frame(
    values: object,
    positions: tuple[int, ...],
    sites: tuple[str, ...] = ("resid_post.1",),
    *,
    source: str = "input",
    hook: int = 0,
    part: str = "",
) -> TensorFrame:
    return TensorFrame(source, hook, "mine", sites, positions, 0, Tensor.of(np.asarray(values)), part)


def test_rows_of_several_steps_are_joined_on_the_position_axis() -> None:
    prompt = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    step = 100 + np.arange(2 * 1 * 4, dtype=np.float32).reshape(2, 1, 4)
    sites = ("resid_post.0", "resid_post.1")
    found = assemble([frame(prompt, (0, 1, 2), sites), frame(step, (3,), sites)])
    assert list(found) == [CaptureKey("input", 0, site, "") for site in sites]
    for i, capture in enumerate(found.values()):
        assert capture.id == "mine"
        assert capture.positions == (0, 1, 2, 3)
        np.testing.assert_array_equal(capture.array, np.concatenate([prompt[i], step[i]]))


def test_sites_may_come_apart_in_one_step_and_together_in_the_next() -> None:
    one = np.ones((1, 1, 2), np.float32)
    both = np.full((2, 1, 2), 2, np.float32)
    a, b = "q.0", "q.1"
    found = assemble([frame(one, (0,), (a,)), frame(one, (0,), (b,)), frame(both, (1,), (a, b))])
    assert [capture.positions for capture in found.values()] == [(0, 1), (0, 1)]
    assert found[CaptureKey("input", 0, b, "")].array.tolist() == [[1, 1], [2, 2]]


def test_inputs_hooks_and_parts_stay_apart() -> None:
    row = np.zeros((1, 1, 2), np.float32)
    frames = [
        frame(row, (0,)),
        frame(row, (0,), source="other"),
        frame(row, (0,), hook=1),
        frame(row, (0,), part="value"),
        frame(row.astype(np.int32), (0,), part="index"),
    ]
    assert len(assemble(frames)) == 5


@pytest.mark.parametrize(("site", "fill"), [("attn_scores.0", -np.inf), ("attn_probs.0", 0.0)])
def test_attention_rows_are_joined_on_the_query_axis_and_filled_on_the_key_axis(site: str, fill: float) -> None:
    prompt = np.ones((1, 2, 2, 2), np.float32)  # [site, head, query, key]
    step = np.full((1, 2, 1, 3), 2, np.float32)
    (capture,) = assemble([frame(prompt, (0, 1), (site,)), frame(step, (2,), (site,))]).values()
    assert capture.positions == (0, 1, 2)
    assert capture.array.shape == (2, 3, 3)
    assert capture.array[0].tolist() == [[1, 1, fill], [1, 1, fill], [2, 2, 2]]


def test_attention_norms_have_no_key_axis_to_fill() -> None:
    (capture,) = assemble(
        [frame(np.ones((1, 2, 2)), (0, 1), ("attn_probs.0",)), frame(np.ones((1, 2, 1)), (2,), ("attn_probs.0",))]
    ).values()
    assert capture.array.shape == (2, 3)


def test_missing_indices_are_minus_one() -> None:
    frames = [
        frame(np.zeros((1, 1, 1, 1), np.int32), (0,), ("attn_probs.0",), part="index"),
        frame(np.ones((1, 1, 1, 2), np.int32), (1,), ("attn_probs.0",), part="index"),
    ]
    (capture,) = assemble(frames).values()
    assert capture.array[0].tolist() == [[0, -1], [1, 1]]


def test_a_mean_has_no_positions() -> None:
    (capture,) = assemble([frame(np.ones((1, 1, 4), np.float32), ())]).values()
    assert capture.positions == ()
    assert capture.array.shape == (1, 4)


def test_one_frame_is_not_copied() -> None:
    (capture,) = assemble([frame(np.ones((1, 2, 4), np.float32), (0, 1))]).values()
    assert not capture.array.flags.writeable


@pytest.mark.parametrize(
    "frames",
    [
        [frame(np.ones((2, 1, 4)), (0,))],  # two sites announced as one
        [frame(np.ones((1, 2, 4)), (0,))],  # two rows, one position
        [frame(np.ones((1, 1, 4), np.float32), (0,)), frame(np.ones((1, 1, 4), np.float16), (1,))],
        [frame(np.ones((1, 1, 4)), (0,)), frame(np.ones((1, 1, 5)), (1,))],
    ],
)
def test_frames_that_do_not_fit_are_refused(frames: list[TensorFrame]) -> None:
    with pytest.raises(Internal):
        assemble(frames)


def test_nothing_is_nothing() -> None:
    assert assemble([]) == {}
