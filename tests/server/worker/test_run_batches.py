"""Runs go together in one forward; beside generations in short ones, with a step between them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from probewire.backends.hooks.sequence import Sequence
from probewire.backends.model.limits import Limits
from probewire.protos.model import Finished, GenerateRequest, Input, RunRequest, Sampling, Started, Token
from probewire.server.auth.callers import local_caller
from probewire.server.config import RequestLimits, WorkerConfig
from probewire.server.worker.model import LocalModel
from probewire.server.worker.output.sinks import QueueSink
from tests.tiny_models import tiny_checkpoint

CHUNK = 16
SHORT, LONG = "a" * 7, "b" * 39
"""8 and 40 tokens: a byte each, after the beginning-of-text token."""
N_SHORT = 6


@pytest.fixture(scope="module", params=["torch", "mlx"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    folder: Path = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"), max_position_embeddings=8192)
    engine = Limits(n_slots=2, context_tokens=8192, cache_tokens=8192, chunk_tokens=CHUNK)
    limits = RequestLimits(max_new_tokens=8000)
    made = LocalModel(
        WorkerConfig(model=str(folder), id="tiny", backend=request.param, engine=engine, limits=limits), folder
    )
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _quick(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy this machine is: what bounds a forward here is its rows."""
    monkeypatch.setattr(model.scheduler._forwards.pace, "rows", lambda *_: 1 << 20)
    monkeypatch.setattr(model.scheduler._forwards.pace, "seconds", lambda *_: 0.0)


@pytest.fixture
def forwards(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> list[str | list[int]]:
    """What the model's thread does: "step", or the lengths in a batch of runs."""
    seen: list[str | list[int]] = []
    backend, engine = model.backend, model.backend.engine
    assert engine is not None
    run, part, step = backend.run, backend.run_part, engine.step

    def noted_run(sequences: list[Sequence]) -> Any:
        seen.append([len(sequence.tokens) for sequence in sequences])
        return run(sequences)

    def noted_part(sequence: Sequence, parts: Any, stop: int) -> Any:
        seen.append([stop - parts.done])
        return part(sequence, parts, stop)

    def noted_step() -> Any:
        seen.append("step")
        return step()

    monkeypatch.setattr(backend, "run", noted_run)
    monkeypatch.setattr(backend, "run_part", noted_part)
    monkeypatch.setattr(engine, "step", noted_step)
    return seen


def ran_at_once(model: LocalModel, *texts: str) -> None:
    """Put a run of each text into the queue between two turns, and wait for all."""
    sinks = [QueueSink(model.scheduler) for _ in texts]

    def submit() -> None:
        for sink, text in zip(sinks, texts, strict=True):
            model.submit(RunRequest((Input(text),)), sink, local_caller())

    model.scheduler.call(submit)
    for sink in sinks:
        assert isinstance(list(sink.events())[-1], Finished)


def test_beside_a_generation_a_forward_has_a_chunks_rows(model: LocalModel, forwards: list[str | list[int]]) -> None:
    sink = QueueSink(model.scheduler)
    sampling = Sampling(max_new_tokens=8000, ignore_eos=True)
    job = model.submit(GenerateRequest((Input("x"),), sampling=sampling), sink, local_caller())
    stream = sink.events()
    assert isinstance(next(stream), Started)
    assert isinstance(next(stream), Token)
    try:
        ran_at_once(model, *[SHORT] * N_SHORT, LONG)
        assert not job.ended, "the generation was to last longer than the runs"
    finally:
        model.scheduler.cancel(job)
        model.scheduler.call(lambda: None)
    batches = [batch for batch in forwards if batch != "step"]
    assert batches == [[8, 8], [8, 8], [8, 8], [16], [16], [8]], "one that is longer goes in parts"
    between = [(a, b) for a, b in pairwise(forwards) if "step" not in (a, b)]
    assert between == [], "a generation gets a step between two of them"


def test_alone_all_that_fit_go_in_one_forward(model: LocalModel, forwards: list[str | list[int]]) -> None:
    ran_at_once(model, *[SHORT] * N_SHORT, LONG)
    assert forwards == [[8] * N_SHORT + [40]]
