"""The model's thread: what is called on it, its end, and a fault in the scheduling itself, of which every request is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from probewire.backends.hooks.base import Backend
from probewire.backends.model.limits import Limits
from probewire.protos.errors import FailedPrecondition, Internal, ResourceExhausted, Unavailable
from probewire.protos.model import Finished, GenerateRequest, Input, Sampling, Started
from probewire.server.auth.callers import local_caller
from probewire.server.config import RequestLimits, WorkerConfig
from probewire.server.worker import scheduler as module
from probewire.server.worker.model import LocalModel
from probewire.server.worker.output.sinks import QueueSink
from probewire.server.worker.scheduler import Scheduler
from tests.tiny_models import tiny_checkpoint

ENGINE = Limits(n_slots=1, context_tokens=512, cache_tokens=512, chunk_tokens=16)
LONG = GenerateRequest((Input("hello"),), sampling=Sampling(max_new_tokens=400, ignore_eos=True))


def made(folder: Path, **options: object) -> LocalModel:
    config = WorkerConfig(
        model=str(folder), id="tiny", backend="torch", engine=ENGINE, limits=RequestLimits(max_wait_s=1)
    )
    return LocalModel(config, folder, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint("llama", tmp_path)


def test_requests_are_told_and_the_worker_is_to_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    died = threading.Event()
    model = made(folder, on_death=died.set)
    sinks = [QueueSink(model.scheduler) for _ in range(2)]
    for sink in sinks:
        model.submit(LONG, sink, local_caller())
    streams = [sink.events() for sink in sinks]
    assert isinstance(next(streams[0]), Started)

    def broken() -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(model.scheduler, "_hold_back", broken)
    for stream in streams:
        with pytest.raises(Unavailable, match="MemoryError"):
            list(stream)
    assert died.wait(10)
    with pytest.raises(Unavailable, match="must be restarted"):
        model.submit(LONG, QueueSink(model.scheduler), local_caller())
    assert not model.probe().ready
    model.close()


def test_whoever_waits_too_long_is_told_to_come_back(folder: Path) -> None:
    model = made(folder)
    first, second = QueueSink(model.scheduler), QueueSink(model.scheduler)
    job = model.submit(LONG, first, local_caller())
    model.scheduler.call(lambda: setattr(model.backend.engine, "step", list))  # the one slot stays taken
    model.submit(LONG, second, local_caller())
    with pytest.raises(ResourceExhausted, match="waited for its turn for 1 s") as caught:
        list(second.events())
    assert caught.value.retry_after_s
    model.scheduler.cancel(job)
    model.close()


@pytest.fixture
def model(folder: Path) -> Iterator[LocalModel]:
    it = made(folder)
    yield it
    it.close()


def test_a_call_runs_on_the_models_thread_and_comes_back_with_what_it_gives(model: LocalModel) -> None:
    assert model.scheduler.call(lambda: threading.current_thread().name) == "model"
    assert threading.current_thread().name != "model"


def test_what_a_call_raises_is_raised_here_and_the_thread_goes_on(model: LocalModel) -> None:
    def broken() -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        model.scheduler.call(broken)
    assert model.scheduler.call(lambda: 7) == 7


def test_commands_run_in_the_order_in_which_they_came(model: LocalModel) -> None:
    seen: list[int] = []
    for i in range(100):
        model.scheduler.later(lambda i=i: seen.append(i))
    model.scheduler.call(lambda: None)
    assert seen == list(range(100))


def test_a_call_that_is_not_reached_in_time_gives_nothing_and_runs_later(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE_WAIT_S", 0.01)
    go_on, ran = threading.Event(), threading.Event()
    model.scheduler.later(lambda: go_on.wait(30))
    assert model.scheduler.call(lambda: ran.set() or 7, give_up_s=0.0) is None
    assert not ran.is_set()
    go_on.set()
    assert ran.wait(30)


def test_closing_tells_every_request_and_nothing_is_taken_afterwards(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IDLE_WAIT_S", 0.01)
    model = made(folder)
    model.scheduler.call(lambda: setattr(model.backend.engine, "step", list))
    sinks = [QueueSink(model.scheduler) for _ in range(2)]
    for sink in sinks:  # one runs, and one waits for the only slot
        model.submit(LONG, sink, local_caller())
    model.close()
    for sink in sinks:
        with pytest.raises(Unavailable, match="the model is being unloaded"):
            list(sink.events())
    with pytest.raises(Unavailable, match="must be restarted"):
        model.scheduler.call(lambda: None)


def test_why_a_model_cannot_be_built_is_raised_where_it_is_started() -> None:
    died = threading.Event()

    def build(threads: int) -> Backend:
        raise FailedPrecondition(f"no such weights, with {threads} threads")

    scheduler = Scheduler(build, RequestLimits(), died.set, threads=3)
    with pytest.raises(FailedPrecondition, match="no such weights, with 3 threads"):
        scheduler.start()
    with pytest.raises(Unavailable, match="the model's thread has ended"):
        scheduler.call(lambda: None)
    assert not died.is_set(), "that is for one that has served"


def test_a_step_that_fails_ends_those_who_were_in_it_and_no_more(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = model.backend.engine
    assert engine is not None
    short = replace(LONG, sampling=Sampling(max_new_tokens=2, ignore_eos=True))

    def broken() -> None:
        monkeypatch.undo()
        raise RuntimeError("a kernel failed")

    monkeypatch.setattr(engine, "step", broken)
    sink = QueueSink(model.scheduler)
    model.submit(LONG, sink, local_caller())
    with pytest.raises(Internal, match="the generation step failed: RuntimeError: a kernel failed"):
        list(sink.events())
    again = QueueSink(model.scheduler)
    model.submit(short, again, local_caller())
    assert isinstance(list(again.events())[-1], Finished)


def test_the_status_is_that_of_engine_and_queue(model: LocalModel) -> None:
    status = model.scheduler.call(model.scheduler.status)
    assert (status.running, status.waiting, status.held, status.n_slots) == (0, 0, 0, 1)
    assert (status.cache_used_tokens, status.cache_tokens) == (0, 512)
    model.scheduler.call(lambda: setattr(model.backend.engine, "step", list))
    jobs = [model.submit(LONG, QueueSink(model.scheduler), local_caller()) for _ in range(3)]
    model.scheduler.call(lambda: None)
    status = model.scheduler.call(model.scheduler.status)
    assert (status.running, status.waiting) == (1, 2)
    assert status.cache_used_tokens == 6 + 400, "the whole of it is set aside: its prompt, and all that it may make"
    assert len(model.scheduler.call(lambda: model.scheduler.jobs)) == 3
    for job in jobs:
        model.scheduler.cancel(job)
    assert model.scheduler.call(lambda: model.scheduler.jobs) == []
