"""A model in this process, read and closed from several threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from probewire.backends.limits import Limits
from probewire.clients import Client
from probewire.server.config import WorkerConfig
from probewire.server.inprocess import InProcessService
from probewire.server.local import LocalModel
from tests.tiny_models import tiny_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    folder: Path = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    engine = Limits(n_slots=2, context_tokens=256, cache_tokens=512, chunk_tokens=16)
    made = LocalModel(WorkerConfig(model=str(folder), id="tiny", backend="torch", engine=engine), folder)
    yield made
    made.close()


def test_closing_from_another_thread_ends_a_wait_and_cancels(model: LocalModel) -> None:
    standing, go_on = threading.Event(), threading.Event()

    def stand_still() -> None:
        standing.set()
        go_on.wait(20)

    client, engine = Client(service=InProcessService(model)), model.backend.engine
    assert engine is not None
    steps: list[str] = []

    def read() -> None:
        for step in stream:
            steps.append(step.text)  # noqa: PERF401  seen from outside as it grows

    with ThreadPoolExecutor(1) as pool:
        stream = client.stream("When Mary and John", max_new_tokens=200, ignore_eos=True)
        try:
            model.scheduler.later(stand_still)
            assert standing.wait(20)
            rest = pool.submit(read)
            end_s = time.monotonic() + 20
            while len(steps) < sum(sequence.n_generated for sequence in engine.active):
                assert time.monotonic() < end_s, "what has been sampled arrives"
                time.sleep(0.01)
            stream.close()
            rest.result(20)  # although the model stands still
            assert len(steps) < 200
            assert stream.finished == {}
        finally:
            go_on.set()
    assert model.scheduler.call(lambda: list(engine.active)) == [], "it was cancelled before this question came"
    assert len(client.generate("When Mary", max_new_tokens=2, ignore_eos=True).only.new) == 2
