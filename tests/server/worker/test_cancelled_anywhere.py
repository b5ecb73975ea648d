"""A request whose caller leaves at any await of its way holds nothing afterwards: no slot, no cache, no reservation."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import nullcontext
from typing import Any
from unittest import mock

import pytest

from probewire.backends.batch_engine import BatchEngine
from probewire.backends.model.limits import Limits
from probewire.protos.edits import FromInput, Replace, Scale
from probewire.protos.gradients import GradientsRequest
from probewire.protos.metrics import Logit, Target
from probewire.protos.model import Event, GenerateRequest, Input, RunRequest, Sampling, TokenizeRequest
from probewire.protos.operations import BY_CALL
from probewire.protos.spec import Capture, Hook, Plan, Where
from probewire.protos.sweeps import SweepRequest
from probewire.server.auth.callers import CALLER, local_caller
from probewire.server.config import WorkerConfig
from probewire.server.worker.model import LocalModel
from probewire.server.worker.operations import LocalOperations
from tests.backends.derived import SIZES, write
from tests.cancelling import cancelled_at
from tests.server.serving import eventually, gateway, request_bytes
from tests.tiny_models import tiny_checkpoint

MOST_WAITS = 200
STABLELM = {**SIZES, "num_hidden_layers": 2, "num_key_value_heads": 2}
"""Its attention passes nothing on that the library's batches need, so ours are of its own caches."""
STORE = Plan((Hook("resid_post.1", capture=Capture(store=True)),))
SWEPT = tuple(Plan((Hook("mlp_out.1", edit=Scale(0.1 * i)),)) for i in range(30))
TARGETS = (Target(Logit(7)),)
PATCHED = Plan((Hook("resid_post.0", edit=Replace(FromInput("clean")), where=Where(phase="prompt"), inputs=("x",)),))

REQUESTS: dict[str, Callable[[LocalOperations], AsyncIterator[list[Event]]]] = {
    "generate": lambda it: it.generate(
        GenerateRequest((Input("abc"),), plan=STORE, sampling=Sampling(max_new_tokens=4, ignore_eos=True))
    ),
    "patched": lambda it: it.generate(
        GenerateRequest(
            (Input("abc", name="clean", source_only=True), Input("abd", name="x")),
            plan=PATCHED,
            sampling=Sampling(max_new_tokens=3, ignore_eos=True),
        )
    ),
    "run": lambda it: it.run(RunRequest((Input("abc"), Input("de", name="other")), plan=STORE)),
    "gradients": lambda it: it.gradients(GradientsRequest((Input("abc"),), TARGETS)),
    "sweep": lambda it: it.sweep(SweepRequest((Input("abc"),), TARGETS, SWEPT)),
}


@pytest.fixture(scope="module", params=["torch", "mlx", "torch stacked", "torch alone"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    name, _, own = request.param.partition(" ")
    folder = tmp_path_factory.mktemp("tiny")
    folder = write("stablelm", folder, **STABLELM) if own else tiny_checkpoint("llama", folder)
    engine = Limits(n_slots=2, context_tokens=256, cache_tokens=512, chunk_tokens=16)
    with mock.patch("probewire.backends.batch_fault", return_value="a test of it") if own == "alone" else nullcontext():
        made = LocalModel(WorkerConfig(model=str(folder), id="tiny", backend=name, engine=engine), folder)
    assert bool(own) == isinstance(made.backend.engine, BatchEngine)
    assert (own == "alone") == bool(made.backend.info.batching)
    yield made
    made.close()


def _held(model: LocalModel) -> dict[str, Any]:
    """Everything that a request takes, as the model's thread sees it."""
    scheduler = model.scheduler
    engine = model.backend.engine
    assert engine is not None

    def look() -> dict[str, Any]:
        if not engine.active:
            engine.step()  # a removed sequence's cache goes with the next step
        status = scheduler.status()
        return {
            "running": status.running,
            "held": status.held,
            "waiting": status.waiting,
            "expected": scheduler._waiting._counts.total() + scheduler._runs._counts.total(),
            "cost": scheduler._waiting.cost + scheduler._runs.cost,
            "cache": status.cache_held,
            "jobs": len(scheduler.jobs),
            "prefixes": len(scheduler._forwards._prefixes),
            "reserved": model.state.rows("SELECT COUNT(*) FROM reservations")[0][0],
        }

    return scheduler.call(look)


@pytest.mark.parametrize("kind", list(REQUESTS))
def test_a_worker_keeps_nothing(model: LocalModel, kind: str) -> None:
    operations = LocalOperations(model)

    async def whole() -> None:
        async for _ in REQUESTS[kind](operations):
            pass

    async def at_every_wait() -> int:
        for n in range(1, MOST_WAITS):
            CALLER.set(local_caller())  # one that left may still be on its way in: ids are of one request each
            cancelled = await cancelled_at(n, whole())
            await eventually(lambda: _nothing(model), f"nothing is held after wait {n}")
            if not cancelled:
                return n - 1
        raise AssertionError("the request never ends by itself")

    assert (
        asyncio.run(at_every_wait()) >= 1
    )  # how many there are is the scheduler's luck: a quick answer needs no second


async def _nothing(model: LocalModel) -> bool:
    held = await asyncio.to_thread(_held, model)
    return not any(held.values())


def test_a_caller_who_leaves_while_the_request_is_checked(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that checks it goes on, and queues what nobody waits for."""
    checking, go_on, queued = threading.Event(), threading.Event(), threading.Event()
    real = LocalModel.submit

    def slow(self: LocalModel, *args: Any) -> Any:
        checking.set()
        assert go_on.wait(30)
        job = real(self, *args)
        queued.set()
        return job

    monkeypatch.setattr(LocalModel, "submit", slow)
    operations = LocalOperations(model)
    long = GenerateRequest((Input("abc"),), sampling=Sampling(max_new_tokens=100, ignore_eos=True))

    async def leave() -> None:
        CALLER.set(local_caller())
        stream = operations.generate(long)
        task = asyncio.ensure_future(anext(aiter(stream)))
        await asyncio.to_thread(checking.wait, 30)
        task.cancel()
        await asyncio.wait([task])
        go_on.set()
        assert await asyncio.to_thread(queued.wait, 30)
        await eventually(lambda: _nothing(model), "nothing is held")

    asyncio.run(leave())


def test_what_cannot_be_queued_lets_go_of_its_reservation(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("a fault of the queue")

    monkeypatch.setattr(model.scheduler, "submit", refuse)
    with pytest.raises(RuntimeError, match="a fault of the queue"):
        model.submit(RunRequest((Input("abc"),), plan=STORE), None, local_caller())
    monkeypatch.undo()
    assert not any(_held(model).values())


def test_a_gateway_and_its_worker_keep_nothing() -> None:
    async def at_every_wait() -> int:
        async with gateway("a") as (it, _):
            worker = it.find("a")

            async def whole() -> None:
                async for _ in it.streams.stream(BY_CALL["generate"], request_bytes("a", 3)):
                    pass

            async def nothing() -> bool:
                active = (await it.tokenize(TokenizeRequest(Input("x"), "a"))).token_ids[0]
                return not active and not it.policy.records and not worker._in_use

            for n in range(1, MOST_WAITS):
                cancelled = await cancelled_at(n, whole())
                await eventually(nothing, f"nothing is held after wait {n}")
                if not cancelled:
                    return n - 1
            raise AssertionError("the request never ends by itself")

    assert (
        asyncio.run(at_every_wait()) >= 1
    )  # how many there are is the scheduler's luck: a quick answer needs no second
