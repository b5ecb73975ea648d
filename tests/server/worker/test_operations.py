"""The operations of a worker over one tiny model: loaded with reports, streamed, each as its caller, closed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from probewire.protos.errors import InvalidArgument, NotFound, Unavailable, Unsupported
from probewire.protos.loading import LoadRequest
from probewire.protos.model import Finished, GenerateRequest, Input, RunRequest, Sampling, Started, Token
from probewire.protos.operations import BY_CALL
from probewire.protos.saes import LoadSaeRequest
from probewire.server.auth.callers import CALLER, Caller
from probewire.server.auth.users import User
from probewire.server.config import WorkerConfig
from probewire.server.worker import operations as module
from probewire.server.worker.model import LocalModel
from probewire.server.worker.operations import LocalOperations
from tests.tiny_models import tiny_checkpoint

ADA = Caller(User("ada", "researcher"), "req-1")
ASK = GenerateRequest((Input("abc"),), sampling=Sampling(max_new_tokens=3, ignore_eos=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[LocalModel]:
    made = LocalModel(config(folder), folder)
    yield made
    made.close()


def config(folder: Path) -> WorkerConfig:
    return WorkerConfig(model=str(folder), id="tiny", device="cpu")


class Reports:
    """What a load says of itself."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        if stage not in self.stages:
            self.stages.append(stage)


def test_a_model_is_found_loaded_and_checked_before_it_serves(folder: Path) -> None:
    async def scenario() -> None:
        reports = Reports()
        operations = await LocalOperations.create(config(folder), reports)
        assert reports.stages[-2:] == ["load", "check"]
        assert (await operations.health()).models == {"tiny": "ready"}
        [info] = await operations.other(BY_CALL["models"])
        assert (info.id, len(info.model_hash) > 0) == ("tiny", True)
        await operations.close()
        report = await operations.health()
        assert not report.ready
        assert report.models["tiny"].startswith("failed")

    asyncio.run(scenario())


def test_a_checkpoint_that_is_not_there_ends_the_load() -> None:
    with pytest.raises((NotFound, InvalidArgument), match="/no/such/folder"):
        asyncio.run(LocalOperations.create(WorkerConfig(model="/no/such/folder", id="x"), Reports()))


def test_a_model_that_has_no_room_is_never_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda *_: 1)
    reports = Reports()
    with pytest.raises(Exception, match="are free; unload another model"):
        asyncio.run(LocalOperations.create(config(folder), reports))
    assert "load" not in reports.stages


def test_a_stream_begins_ends_and_leaves_nothing(model: LocalModel) -> None:
    async def scenario() -> list[type]:
        operations = LocalOperations(model)
        return [type(event) async for events in operations.generate(ASK) for event in events]

    assert asyncio.run(scenario()) == [Started, Token, Token, Token, Finished]
    assert model.scheduler.call(lambda: model.scheduler.jobs) == []


def test_a_refusal_comes_before_the_first_event(model: LocalModel) -> None:
    async def first() -> object:
        return await anext(aiter(LocalOperations(model).run(RunRequest((Input("abc"),), model="other"))))

    with pytest.raises(NotFound, match="no model 'other' here; loaded: tiny"):
        asyncio.run(first())


def test_a_stream_that_is_closed_cancels_its_request(model: LocalModel) -> None:
    async def scenario() -> None:
        long = GenerateRequest((Input("abc"),), sampling=Sampling(max_new_tokens=400, ignore_eos=True))
        stream: Any = LocalOperations(model).generate(long)
        await anext(stream)
        await stream.aclose()

    asyncio.run(scenario())
    assert model.scheduler.call(lambda: model.scheduler.jobs) == []


def test_functions_are_called_as_the_caller_and_off_the_event_loop(
    model: LocalModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool, object]] = []

    def describe(here: LocalModel, caller: Caller, name: str) -> str:
        seen.append((caller.user.name, threading.current_thread() is threading.main_thread(), name))
        return "described"

    monkeypatch.setitem(module.functions.FUNCTIONS, "describe", describe)

    async def scenario() -> object:
        CALLER.set(ADA)
        return await LocalOperations(model).other(BY_CALL["describe"], "tiny")

    assert asyncio.run(scenario()) == "described"
    assert seen == [("ada", False, "tiny")]


def test_weights_and_captures_are_tensors(model: LocalModel) -> None:
    async def scenario() -> None:
        operations = LocalOperations(model)
        names = await operations.weight_names("")
        name = "model.layers.0.mlp.up_proj.weight"
        tensor = await operations.weights(name, "tiny")
        assert tensor.shape == names[name] == (96, 64)
        with pytest.raises(NotFound, match="no model 'other' here"):
            await operations.weight_names("other")
        with pytest.raises(NotFound, match="cap-none"):
            await operations.capture("cap-none", "")

    asyncio.run(scenario())


def test_saes_are_loaded_one_at_a_time(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most, lock = [0], [0], threading.Lock()
    go_on = threading.Event()

    def load_sae(here: LocalModel, caller: Caller, request: LoadSaeRequest) -> str:
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        go_on.wait(0.05)
        with lock:
            inside[0] -= 1
        return request.name

    monkeypatch.setattr(module.functions, "load_sae", load_sae)

    async def scenario() -> list[Any]:
        operations = LocalOperations(model)
        requests = [LoadSaeRequest(name, source="org/repo/x") for name in "abc"]
        return await asyncio.gather(*map(operations.load_sae, requests))

    assert asyncio.run(scenario()) == ["a", "b", "c"]
    assert most == [1]


def test_a_worker_loads_no_other_model(model: LocalModel) -> None:
    async def first() -> object:
        return await anext(aiter(LocalOperations(model).load(LoadRequest("other"))))

    with pytest.raises(Unsupported, match="a worker serves one model; load others through the gateway"):
        asyncio.run(first())


def test_a_model_whose_thread_has_ended_is_failed(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(self: LocalModel) -> None:
        raise Unavailable("the model's thread has ended")

    monkeypatch.setattr(LocalModel, "probe", probe)
    report = asyncio.run(LocalOperations(model).health())
    assert (report.ready, report.detail, report.models) == (
        False,
        "the model's thread has ended",
        {"tiny": "failed"},
    )
