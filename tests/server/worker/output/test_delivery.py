"""What the model's thread found, as events in order for one reader: without a model, by results made here."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from probewire.backends.hooks.sequence import Rows, StepResult
from probewire.backends.model.tokenizer import Tokenizer
from probewire.protos.errors import ResourceExhausted, Unavailable
from probewire.protos.metrics import Measured
from probewire.protos.model import (
    Finished,
    Revised,
    TensorFrame,
    Token,
    Usage,
)
from probewire.protos.sessions import Session
from probewire.protos.spec import Plan
from probewire.server.worker.output.delivery import HIGH_WATER_BYTES, LOW_WATER_BYTES
from tests.server.worker.output.boxes import EOS, KEEP, READ, RESERVATION, Box, rows
from tests.tiny_models import VOCAB_SIZE, tiny_checkpoint


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer(tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny")), VOCAB_SIZE)


# ---- a generation ----------------------------------------------------------------------------------------------------


def test_the_start_is_told_once_and_first(tokenizer: Tokenizer) -> None:
    box = Box(tokenizer)
    box.begin()
    box.job.start()
    assert box.reader.events == [box.job.prepared.started]


def test_inputs_grow_side_by_side_and_the_last_ends_the_answer(tokenizer: Tokenizer) -> None:
    box = Box(tokenizer, max_new_tokens=2)
    box.begin()
    assert [box.step("x", "a"), box.step("y", "b"), box.step("x", "c")] == [False, False, True]
    assert box.reader.ends == []
    assert box.step("y", "d")
    assert (box.texts("x"), box.texts("y")) == ("ac", "bd")
    assert [(e.index, e.id) for e in box.of(Token) if e.input == "x"] == [(0, box.id("a")), (1, box.id("c"))]
    assert [(e.input, e.reason, e.usage) for e in box.of(Finished)] == [
        ("x", "length", Usage(2, 2)),
        ("y", "length", Usage(2, 2)),
    ]
    assert box.reader.ends == [None]
    assert box.job.ended
    assert box.store.released == [RESERVATION]


def test_a_prompt_that_is_still_read_brings_rows_and_no_token(tokenizer: Tokenizer) -> None:
    box = Box(tokenizer, READ)
    box.begin()
    assert box.step("x", None, rows(0, 0, 1.0)) is False
    assert box.of(Token) == []
    [frame] = box.of(TensorFrame)
    assert (frame.input, frame.id, frame.positions, frame.step) == ("x", "hook0", (0,), 0)


def test_the_step_of_a_frame_counts_from_the_prompts_end(tokenizer: Tokenizer) -> None:
    box = Box(tokenizer, READ)
    box.begin()
    for position, token in ((1, "a"), (2, "b"), (3, "c")):
        box.step("x", token, rows(0, position, 1.0))
    assert [(frame.positions, frame.step) for frame in box.of(TensorFrame)] == [((1,), 0), ((2,), 1), ((3,), 2)]


@pytest.mark.parametrize(("ignore_eos", "reason"), [(False, "eos"), (True, None)])
def test_an_end_token_ends_unless_it_is_ignored(tokenizer: Tokenizer, ignore_eos: bool, reason: str | None) -> None:
    box = Box(tokenizer, ignore_eos=ignore_eos)
    box.begin()
    assert box.step("x", EOS) is (reason is not None)
    assert [e.reason for e in box.of(Finished)] == ([reason] if reason else [])


def test_a_stop_string_ends_and_is_cut_off(tokenizer: Tokenizer) -> None:
    box = Box(tokenizer, stop=("bc",), max_new_tokens=5)
    box.begin()
    assert [box.step("x", letter) for letter in "abc"] == [False, False, True]
    assert box.texts("x") == "a"
    assert [e.reason for e in box.of(Finished)] == ["stop"]


def test_text_that_was_held_back_comes_with_the_last_token(tokenizer: Tokenizer) -> None:
    box = Box(tokenizer, stop=("bcd",), max_new_tokens=3)
    box.begin()
    for letter in "abc":
        box.step("x", letter)
    assert [e.text for e in box.of(Token)] == ["a", "", "bc"]
    assert box.of(Finished)[0].reason == "length"


def test_log_probabilities_are_told_where_they_were_asked_for(tokenizer: Tokenizer) -> None:
    plain, asked = Box(tokenizer), Box(tokenizer, logprobs=1)
    for box in (plain, asked):
        box.begin()
        box.step("x", "a", logprob=-0.5, top=((box.id("b"), -0.25),) if box is asked else ())
    assert (plain.of(Token)[0].logprob, plain.of(Token)[0].top) == (None, ())
    [token] = asked.of(Token)
    assert token.logprob == -0.5
    assert [(t.id, t.text, t.logprob, t.raw) for t in token.top] == [
        (asked.id("b"), "b", -0.25, b"b"),
        (asked.id("a"), "a", -0.5, b"a"),
    ]


def test_the_sampled_token_is_not_told_twice(tokenizer: Tokenizer) -> None:
    box = Box(tokenizer, logprobs=1)
    box.begin()
    box.step("x", "a", logprob=-0.5, top=((box.id("a"), -0.5),))
    assert [t.id for t in box.of(Token)[0].top] == [box.id("a")]


# ---- runs and sweeps -------------------------------------------------------------------------------------------------


def test_a_run_is_its_rows_and_its_end(tokenizer: Tokenizer) -> None:
    box = Box(tokenizer, READ, mode="run")
    box.begin()
    box.job.deliver_run(box.items[0], StepResult(box.sequence("x"), (rows(0, 0, 1.0), rows(0, 1, 2.0))))
    assert [type(event) for event in box.reader.steps[-1]] == [TensorFrame, TensorFrame, Finished]
    assert [frame.step for frame in box.of(TensorFrame)] == [0, 0]
    [finished] = box.of(Finished)
    assert (finished.reason, finished.usage) == ("run", Usage(2, 0))
    assert not box.job.ended


def test_a_gradients_metric_comes_before_its_rows(tokenizer: Tokenizer) -> None:
    box = Box(tokenizer, READ, mode="gradients")
    box.begin()
    box.job.deliver_run(box.items[0], StepResult(box.sequence("x"), (rows(0, 0, 1.0),), measured=(0.5, 0.25)))
    measured, frame, _ = box.reader.steps[-1]
    assert isinstance(frame, TensorFrame)
    assert isinstance(measured, Measured)
    assert measured.values.numpy().tolist() == [[0.5], [0.25]]


def test_a_sweeps_plans_are_told_as_they_come_and_end_once(tokenizer: Tokenizer) -> None:
    box = Box(tokenizer, mode="sweep")
    box.begin()
    box.job.deliver_measured(box.items[0], [2, 0], [(1.0, 2.0), (3.0, 4.0)], done=False)
    assert box.of(Finished) == []
    box.job.deliver_measured(box.items[0], [1], [(5.0, 6.0)], done=True)
    assert [(m.plans, m.values.numpy().tolist()) for m in box.of(Measured)] == [
        ((2, 0), [[1.0, 2.0], [3.0, 4.0]]),
        ((1,), [[5.0, 6.0]]),
    ]
    assert [e.input for e in box.of(Finished)] == ["x"]


def test_a_sources_rows_are_kept_by_site_and_position(tokenizer: Tokenizer) -> None:
    box = Box(tokenizer)
    values = np.arange(4, dtype=np.float32).reshape(2, 2, 1)
    scores = np.arange(12, dtype=np.float32).reshape(1, 2, 2, 3)  # [site, head, query, key]
    found = (
        Rows(0, ("z.0", "z.1"), (3, 5), values),
        Rows(1, ("attn_scores.0",), (3, 5), scores),
        Rows(2, ("z.0",), (7,), values[:1, :1]),
    )
    box.job.take_source_rows(box.items[0], StepResult(box.sequence("x"), found))
    kept = box.job.prepared.rows["x"]
    assert {site: list(by_position) for site, by_position in kept.items()} == {
        "z.0": [3, 5, 7],
        "z.1": [3, 5],
        "attn_scores.0": [3, 5],
    }
    assert kept["z.1"][5].tolist() == [3.0]
    assert kept["attn_scores.0"][5].tolist() == scores[0, :, 1].tolist(), "a row is a query's, over all heads"
    assert box.reader.steps == []


# ---- captures that are kept ------------------------------------------------------------------------------------------


def test_what_is_kept_is_joined_a_capture_a_site_and_told_at_the_end(tokenizer: Tokenizer) -> None:
    box = Box(tokenizer, READ, KEEP, max_new_tokens=2)
    box.begin()
    box.step("x", "a", rows(0, 1, 0.0), rows(1, 1, 1.0, "z.1"))
    assert box.step("x", "b", rows(1, 2, 2.0, "z.1"))
    assert [frame.id for frame in box.of(TensorFrame)] == ["hook0"], "what is kept is not sent"
    assert box.of(Finished) == [], "not before it is on the disk"
    box.store.go_on()
    [kept] = box.store.put
    assert (kept.model, kept.site, kept.input, kept.positions) == ("m", "z.1", "x", (1, 2))
    assert kept.array.tolist() == [[1.0], [2.0]]
    assert [stored.id for stored in box.of(Finished)[0].stored] == ["cap-0"]
    assert box.store.released == []


def test_a_disk_that_is_full_ends_the_request(tokenizer: Tokenizer) -> None:
    box = Box(tokenizer, KEEP, mode="run")
    box.begin()
    box.store.error = ResourceExhausted("the disk is full")
    box.job.deliver_run(box.items[0], StepResult(box.sequence("x"), (rows(0, 0, 1.0, "z.1"),)))
    box.store.go_on()
    assert box.reader.ends == [box.store.error]
    assert box.store.released == [RESERVATION]


def test_what_was_kept_for_one_who_has_left_is_deleted_and_its_room_freed(tokenizer: Tokenizer) -> None:
    box = Box(tokenizer, KEEP, mode="run")
    box.begin()
    box.job.deliver_run(box.items[0], StepResult(box.sequence("x"), (rows(0, 0, 1.0, "z.1"),)))
    box.job.fail(Unavailable("unloaded"))
    assert box.store.released == [], "it is still being written"
    box.store.go_on()
    assert box.store.deleted == ["cap-0"]
    assert box.store.released == [RESERVATION]
    assert box.of(Finished) == []


def test_room_that_cannot_be_freed_is_no_end_of_the_models_thread(
    tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    box = Box(tokenizer)
    box.store.fault = ResourceExhausted("the database cannot be written")
    with caplog.at_level(logging.WARNING):
        box.job.fail(Unavailable("unloaded"))
    assert "room for captures of request req-1 stays reserved: the database cannot be written" in caplog.text
    assert len(box.reader.ends) == 1


# ---- sessions, ends and slow readers ---------------------------------------------------------------------------------


def test_a_request_whose_session_moved_on_is_made_ready_again(tokenizer: Tokenizer) -> None:
    box = Box(tokenizer)
    box.job.catch_up()
    box.sessions.session = Session("ses-1", "", "m", Plan(), 0)
    box.job.catch_up()
    assert box.again == []
    box.sessions.session = Session("ses-1", "", "m", Plan(), 4)
    box.job.catch_up()
    box.job.catch_up()
    assert box.again == ["again"]
    assert box.job.prepared.started.revision == 4


def test_a_new_revision_is_told_before_its_first_token(tokenizer: Tokenizer) -> None:
    box = Box(tokenizer, READ)
    box.begin()
    box.step("x", "a")
    box.step("x", "b", revision=2)
    box.step("x", "c", revision=2)
    told = [(type(e), getattr(e, "revision", None)) for e in box.reader.events[1:]]
    assert told[:4] == [(Token, 0), (Revised, 2), (Token, 2), (Token, 2)]
    assert box.of(Revised)[0].hooks[0].sites == ("resid_post.1",)


def test_an_error_ends_behind_what_was_made_before(tokenizer: Tokenizer) -> None:
    box = Box(tokenizer)
    box.begin()
    box.sequence("x").tokens.append(box.id("a"))
    box.job.deliver_step(StepResult(box.sequence("x"), token=box.id("a")))
    error = Unavailable("the model is being unloaded")
    box.job.fail(error)
    assert box.texts("x") == "a"
    assert box.reader.ends == [error]


def test_nothing_is_sent_once_it_has_ended(tokenizer: Tokenizer) -> None:
    box = Box(tokenizer)
    box.begin()
    box.job.fail(Unavailable("gone"))
    before = len(box.reader.steps)
    box.step("x", "a")
    assert len(box.reader.steps) == before


def test_a_reader_is_behind_from_one_mark_on_and_until_a_lower_one(tokenizer: Tokenizer) -> None:
    box = Box(tokenizer)
    for backlog, running, held in (
        (LOW_WATER_BYTES, False, False),
        (LOW_WATER_BYTES + 1, False, True),
        (HIGH_WATER_BYTES, False, True),
        (HIGH_WATER_BYTES + 1, True, True),
    ):
        box.reader.backlog_bytes = backlog
        assert (box.job.is_behind(held=False), box.job.is_behind(held=True)) == (running, held)
