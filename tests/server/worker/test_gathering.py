"""An idle engine waits a moment for generations that are sent together, and no longer than it must."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from probewire.backends.model.limits import Limits
from probewire.clients import Client, Logit, steer
from probewire.server.config import WorkerConfig
from probewire.server.worker import gathering as module
from probewire.server.worker.inprocess import InProcessService
from probewire.server.worker.model import LocalModel
from tests.tiny_models import tiny_checkpoint

SLOTS = 2
LONG_S = 60.0


class Watched:
    """A client, and how many sequences each step of its engine had."""

    def __init__(self, folder: Path) -> None:
        limits = Limits(n_slots=SLOTS, context_tokens=256, cache_tokens=1024)
        self.model = LocalModel(WorkerConfig(str(folder), "tiny", device="cpu", engine=limits), folder)
        self.client = Client.inprocess(InProcessService(self.model))
        self.steps: list[int] = []
        engine: Any = self.model.backend.engine
        real = engine.step

        def step() -> Any:
            self.steps.append(len(engine.active))
            return real()

        engine.step = step

    def generate(self) -> threading.Thread:
        """One generation on a thread of its own."""
        options: dict[str, Any] = {"max_new_tokens": 3, "ignore_eos": True}
        thread = threading.Thread(target=self.client.generate, args=("a prompt",), kwargs=options)
        thread.start()
        return thread


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    made = Watched(tiny_checkpoint("llama", tmp_path))
    yield made
    made.client.close()


def test_those_that_fill_the_slots_share_the_first_step_at_once(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GATHER_S", LONG_S)
    monkeypatch.setattr(module, "GATHER_MOST_S", LONG_S)
    first = watched.generate()
    time.sleep(0.3)
    assert not watched.steps, "it waits for another"
    second = watched.generate()
    for thread in (first, second):
        thread.join(LONG_S / 2)
        assert not thread.is_alive()
    assert watched.steps == [2, 2, 2]


def test_one_alone_does_not_wait_for_ever(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GATHER_S", LONG_S)
    monkeypatch.setattr(module, "GATHER_MOST_S", 0.2)
    thread = watched.generate()
    thread.join(LONG_S / 2)
    assert watched.steps == [1, 1, 1]


def test_a_run_waits_for_the_gathering_and_no_longer(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of half a second, begun within these milliseconds, would hold up the first step of all that gather."""
    monkeypatch.setattr(module, "GATHER_S", LONG_S)
    monkeypatch.setattr(module, "GATHER_MOST_S", 0.3)
    waiting = watched.generate()
    time.sleep(0.05)
    assert watched.client.run("another", capture=["embed"]).captures["embed"].any()
    assert watched.steps, "the step that was gathered for went first"
    waiting.join(LONG_S / 2)
    assert watched.steps == [1, 1, 1]


def test_a_slice_waits_for_the_next_of_whoever_has_just_been_answered(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a sweep a script's next generation does not find a slice that has just begun."""
    monkeypatch.setattr(module, "REST_S", LONG_S)
    plans = [[steer("resid_post.0", [float(i)] * 64)] for i in range(2000)]
    sweeping = threading.Thread(
        target=lambda: watched.client.sweep("a prompt", Logit(5), plans, share=False, progress=False)
    )
    sweeping.start()
    forwards: Any = watched.model.scheduler._forwards
    slices = 0
    real = forwards.some

    def some(*args: Any, **kwargs: Any) -> bool:
        nonlocal slices
        slices += 1
        return real(*args, **kwargs)

    monkeypatch.setattr(forwards, "some", some)
    end_s = time.monotonic() + LONG_S
    while not slices and time.monotonic() < end_s:  # binding the plans takes as long as it takes
        time.sleep(0.01)
    watched.generate().join(LONG_S / 2)
    before = slices
    assert before > 0
    time.sleep(0.3)
    assert slices == before, "it rests"
    monkeypatch.setattr(module, "REST_S", 0.0)
    watched.generate().join(LONG_S / 2)
    sweeping.join(LONG_S)
    assert slices > before, "and goes on"
