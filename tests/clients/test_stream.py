"""Steps as they come, and what leaving early does."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fake_server import wait_for
from fake_service import FakeService, expected

from probewire.clients import (
    Asked,
    Client,
    FailedPrecondition,
    Generation,
    Input,
    Internal,
    NotFound,
    ResourceExhausted,
    capture,
    load,
)
from probewire.clients.stream import Step, Stream
from probewire.protos.model import Finished, Usage


def test_a_step_has_the_token_and_the_rows_of_its_forward(client: Client) -> None:
    with client.stream("abc", capture="resid_post.1", max_new_tokens=3) as stream:
        assert stream.started.hooks[0].sites == ("resid_post.1",)
        steps = list(stream)
    assert [step.text for step in steps] == ["d", "e", "f"]
    assert [step.positions("resid_post.1") for step in steps] == [(0, 1, 2), (3,), (4,)]
    np.testing.assert_array_equal(steps[1]["resid_post.1"], expected("resid_post.1", [100]))
    assert "resid_post.1" in steps[0]
    assert stream.text == "def"
    assert stream.finished["input"].reason == "length"


def test_what_is_sent_at_the_end_comes_in_a_last_step_without_a_token(client: Client) -> None:
    with client.stream("ab", capture=capture("embed", reduce="mean"), max_new_tokens=2) as stream:
        *_, last = stream
    assert last.token is None
    assert last.text == ""
    assert last["embed"].tolist() == [[98.0] * 4]


def test_steps_come_one_by_one(client: Client, service: FakeService) -> None:
    service.step_s = 0.1
    began = time.monotonic()
    with client.stream("a", max_new_tokens=50) as stream:
        assert next(stream).text == "b"
    assert time.monotonic() - began < 3


def test_leaving_early_cancels_on_the_server(client: Client, service: FakeService) -> None:
    service.step_s = 0.05
    with client.stream("a", max_new_tokens=500) as stream:
        next(stream)
    assert wait_for(service.cancelled.is_set)
    assert list(stream) == []
    stream.close()


def test_forgetting_a_stream_cancels_too(client: Client, service: FakeService) -> None:
    service.step_s = 0.05
    next(client.stream("a", max_new_tokens=500))
    assert wait_for(service.cancelled.is_set)


def read_elsewhere(stream: Stream, pool: ThreadPoolExecutor) -> Future[list[Step]]:
    """The rest of a stream, read by another thread."""
    return pool.submit(list, stream)


def test_closing_from_another_thread_ends_a_wait_and_cancels(client: Client, service: FakeService) -> None:
    waiting, go_on = threading.Event(), threading.Event()

    def stand_still(index: int) -> None:
        if index == 2:
            waiting.set()
            go_on.wait(20)

    service.before_step = stand_still
    with ThreadPoolExecutor(1) as pool:
        stream = client.stream("a", max_new_tokens=500)
        try:
            rest = read_elsewhere(stream, pool)
            assert waiting.wait(20)
            assert wait_for(lambda: stream.text == "bc", 20), "it waits for the third"
            stream.close()
            if client.address == "in process":  # a plain generator cannot be woken: it ends with its next item
                go_on.set()
            assert [step.text for step in rest.result(20)] == ["b", "c"], "it ends as if there were no more"
        finally:
            go_on.set()
    assert wait_for(service.cancelled.is_set)
    assert stream.text == "bc"
    assert stream.finished == {}
    assert list(stream) == []
    assert client.generate("a", max_new_tokens=1).text == "b", "the connection serves the next"


def test_any_number_of_threads_may_close_at_any_time(client: Client, service: FakeService) -> None:
    service.step_s = 0.001
    with ThreadPoolExecutor(4) as pool:
        for n in range(20):
            stream = client.stream("a", max_new_tokens=500)
            rest = read_elsewhere(stream, pool)
            for _ in range(n // 4):
                next(stream, None)  # readers take turns
            for done in [pool.submit(stream.close) for _ in range(3)]:
                done.result(20)
            text = "".join(step.text for step in rest.result(20))
            assert len(text) < 500
            stream.close()


def test_closing_after_the_end_leaves_the_connection_to_others(client: Client, service: FakeService) -> None:
    for _ in range(3):
        stream = client.stream("a", max_new_tokens=2)
        assert len(list(stream)) == 2
        other = client.stream("a", max_new_tokens=2)  # over HTTP on the same connection, kept alive
        next(other)
        stream.close()
        assert len(list(other)) == 1
        other.close()
    assert not service.cancelled.is_set()


def test_an_error_is_raised_unless_one_has_closed(client: Client, service: FakeService) -> None:
    def fail(index: int) -> None:
        if index == 1:
            raise ResourceExhausted("full")

    service.before_step = fail
    stream = client.stream("a", max_new_tokens=5)
    assert next(stream).text
    with pytest.raises(ResourceExhausted):
        next(stream)
    assert list(stream) == []
    stream.close()


def test_a_whole_stream_is_not_cancelled(client: Client, service: FakeService) -> None:
    with client.stream("a", max_new_tokens=2) as stream:
        list(stream)
    assert not service.cancelled.is_set()


def test_a_refusal_is_raised_when_the_stream_is_made(client: Client) -> None:
    with pytest.raises(NotFound):
        client.stream("fail:NOT_FOUND")


def test_several_inputs_are_told_apart(client: Client) -> None:
    with client.stream(["a", "k"], max_new_tokens=2) as stream:
        names = [step.input for step in stream]
    assert sorted(names) == ["0", "0", "1", "1"]
    assert stream.texts() == {"0": "bc", "1": "lm"}


def test_an_answer_that_begins_otherwise_is_refused() -> None:
    asked = Asked("generate", (Input(text="a"),))
    with pytest.raises(Internal, match="began with Finished"):
        Stream(iter([Finished("input", "eos", Usage(1))]), asked)
    with pytest.raises(Internal, match="began with NoneType"):
        Stream(iter([]), asked)


def test_at_its_end_it_is_what_generate_gives(client: Client, tmp_path: Path) -> None:
    hooks = [capture("resid_post.*"), capture("embed", reduce="mean", id="m")]
    whole = client.generate({"x": "ab", "y": "c"}, capture=hooks, max_new_tokens=3, logprobs=1, seed=5)
    with client.stream({"x": "ab", "y": "c"}, capture=hooks, max_new_tokens=3, logprobs=1, seed=5) as stream:
        for _ in stream:
            pass
    for found in (stream.result, load(stream.save(tmp_path / "stream.safetensors"))):
        assert isinstance(found, Generation)
        assert repr(found) == repr(whole)
        assert found.asked == whole.asked
        for name, item in whole.inputs.items():
            other = found.inputs[name]
            assert (other.new, other.finished, other.seed) == (item.new, item.finished, item.seed)
            np.testing.assert_array_equal(other.stack("resid_post"), item.stack("resid_post"))
            np.testing.assert_array_equal(other["m"], item["m"])


def test_before_its_end_there_is_only_what_has_come(client: Client, tmp_path: Path) -> None:
    with client.stream({"x": "ab", "y": "c"}, capture="embed", max_new_tokens=3) as stream:
        for step in stream:
            if step.input == "y":
                break
        with pytest.raises(
            FailedPrecondition, match=r"has not ended \(of \['y'\]\).*or take what has come: so_far\(\)"
        ):
            _ = stream.result
        with pytest.raises(FailedPrecondition, match="has not ended"):
            stream.save(tmp_path / "no")
        assert list(tmp_path.iterdir()) == []
    parted = stream.so_far()  # closed early, it has what came
    assert parted.texts() == {"x": "cde", "y": "d"}
    assert parted.inputs["x"].finish_reason == "length"
    assert (parted.inputs["y"].finished, parted.inputs["y"].finish_reason) == (None, "")
    np.testing.assert_array_equal(parted.inputs["y"]["embed"], expected("embed", [99]))
    assert "  new     1 tokens, not ended" in repr(parted).splitlines()
    again = load(parted.save(tmp_path / "part.safetensors"))
    assert repr(again) == repr(parted)
    with pytest.raises(FailedPrecondition, match="has not ended"):
        _ = stream.result


def test_a_stream_may_forget(client: Client) -> None:
    with client.stream("ab", capture="embed", max_new_tokens=3, keep=False) as stream:
        assert len(list(stream)) == 3
    assert stream.text == "cde"
    for read in (lambda: stream.result, stream.so_far):
        with pytest.raises(FailedPrecondition, match="keep=False"):
            read()
