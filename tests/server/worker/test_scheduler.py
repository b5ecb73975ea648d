"""A fault in the scheduling itself: every request is told, and the worker ends so that another can be started."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from probewire.backends.model.limits import Limits
from probewire.protos.errors import ResourceExhausted, Unavailable
from probewire.protos.model import GenerateRequest, Input, Sampling, Started
from probewire.server.auth.callers import local_caller
from probewire.server.config import RequestLimits, WorkerConfig
from probewire.server.worker.model import LocalModel
from probewire.server.worker.output.sinks import QueueSink
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
