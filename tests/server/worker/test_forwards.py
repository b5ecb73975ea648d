"""Whatever one asks for, others get their turn: heavy work goes in slices, and ends within one when its caller has gone."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from probewire.backends.model.limits import Limits
from probewire.clients import Client, Logit, hook
from probewire.protos.edits import FromInput, Replace, Scale
from probewire.protos.errors import Internal
from probewire.protos.gradients import GradientsRequest
from probewire.protos.metrics import Target
from probewire.protos.model import Finished, GenerateRequest, Input, RunRequest, Sampling, TensorFrame
from probewire.protos.spec import Capture, Hook, Mean, Plan
from probewire.protos.sweeps import SweepRequest
from probewire.server.auth.callers import Caller
from probewire.server.auth.users import User
from probewire.server.config import RequestLimits, WorkerConfig
from probewire.server.worker.inprocess import InProcessService
from probewire.server.worker.model import LocalModel
from probewire.server.worker.output.sinks import QueueSink
from tests.tiny_models import tiny_checkpoint

ROWS = 8
"""What a slice holds here, whatever the machine."""
LONG = Input(token_ids=tuple(np.random.default_rng(0).integers(1, 250, 60).tolist()))
SHORT = Input(token_ids=(7, 99, 12, 200))
TARGETS = (Target(Logit(5)),)
PLANS = tuple(Plan((Hook("mlp_out.1", edit=Scale(0.1 * i)),)) for i in range(40))


@pytest.fixture(scope="module", params=["torch", "mlx"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    folder = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    engine = Limits(n_slots=4, context_tokens=512, cache_tokens=1024, chunk_tokens=64)
    limits = RequestLimits(max_new_tokens=400)
    made = LocalModel(WorkerConfig(str(folder), "tiny", backend=request.param, engine=engine, limits=limits), folder)
    yield made
    made.close()


@pytest.fixture(autouse=True)
def _slices(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    pace = model.scheduler._forwards.pace
    monkeypatch.setattr(pace, "rows", lambda *_: ROWS)
    monkeypatch.setattr(pace, "seconds", lambda _, rows: rows / ROWS * 0.2)


@pytest.fixture
def turns(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What the model's thread did, and with how many rows or plans."""
    seen: list[tuple[str, int]] = []
    backend: Any = model.backend

    def note(name: str, size: Any) -> None:
        real = getattr(backend, name)

        def noted(*args: Any) -> Any:
            seen.append((name, size(*args)))
            return real(*args)

        monkeypatch.setattr(backend, name, noted)

    note("run", lambda sequences: sum(len(s.tokens) for s in sequences))
    note("run_part", lambda _, parts, stop: stop - parts.done)
    note("gradients", len)
    note("sweep", lambda variants, _: len(variants))
    return seen


def _user(name: str) -> Caller:
    return Caller(User(name, "researcher"), f"{name}-{secrets.token_hex(4)}")


def _submitted(model: LocalModel, *requests: tuple[str, Any]) -> list[QueueSink]:
    """Requests of some users, put into the queue between two turns."""
    sinks = [QueueSink(model.scheduler) for _ in requests]

    def submit() -> None:
        for sink, (user, request) in zip(sinks, requests, strict=True):
            model.submit(request, sink, _user(user))

    model.scheduler.call(submit)
    return sinks


def _captured(sink: QueueSink) -> dict[tuple[str, str], np.ndarray[Any, Any]]:
    return {(e.sites[0], e.part): e.tensor.numpy() for e in sink.events() if isinstance(e, TensorFrame)}


def test_a_long_run_goes_in_parts_and_comes_to_the_same(model: LocalModel, turns: list[tuple[str, int]]) -> None:
    plan = Plan((Hook("resid_post.1", edit=Scale(1.1), capture=Capture()), Hook("z.2", capture=Capture(reduce=Mean()))))
    [cut] = _submitted(model, ("ada", RunRequest((LONG,), plan=plan)))
    found = _captured(cut)
    assert turns == [("run_part", ROWS)] * 7 + [("run_part", 4)]
    service = InProcessService(model)
    with pytest.MonkeyPatch.context() as whole:
        whole.setattr(model.scheduler._forwards.pace, "rows", lambda *_: 1000)
        expected = {
            (e.sites[0], e.part): e.tensor.numpy()
            for e in service.run(RunRequest((LONG,), plan=plan))
            if isinstance(e, TensorFrame)
        }
    assert turns[-1] == ("run", 60)
    assert found.keys() == expected.keys()
    for key, rows in found.items():
        np.testing.assert_allclose(rows, expected[key], rtol=1e-4, atol=1e-5)


def test_another_users_run_comes_between(model: LocalModel, turns: list[tuple[str, int]]) -> None:
    sinks = _submitted(model, ("ada", RunRequest((LONG,))), ("bob", RunRequest((SHORT,))))
    for sink in sinks:
        assert isinstance(list(sink.events())[-1], Finished)
    assert ("run", 4) in turns[:3], "the long run of one is not yet over"


def test_two_requests_of_one_id(model: LocalModel, turns: list[tuple[str, int]]) -> None:
    """The engine knows sequences by it, so the second would take the first one's place there."""
    caller, service = _user("ada"), InProcessService(model)
    ask = GenerateRequest((SHORT,), sampling=Sampling(max_new_tokens=4, ignore_eos=True))
    sinks = [QueueSink(model.scheduler) for _ in range(2)]
    model.scheduler.call(lambda: [model.submit(ask, sink, caller) for sink in sinks])
    assert isinstance(list(sinks[0].events())[-1], Finished)
    with pytest.raises(Internal, match="under way already"):
        list(sinks[1].events())
    assert isinstance(list(service.generate(ask))[-1], Finished), "and all goes on"


def test_two_long_runs_take_turns(model: LocalModel, turns: list[tuple[str, int]]) -> None:
    seen: list[str] = []
    backend: Any = model.backend
    real = backend.run_part

    def noted(sequence: Any, parts: Any, stop: int) -> Any:
        seen.append(sequence.id.partition("-")[0])
        return real(sequence, parts, stop)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(backend, "run_part", noted)
        for sink in _submitted(model, ("ada", RunRequest((LONG,))), ("bob", RunRequest((LONG,)))):
            assert isinstance(list(sink.events())[-1], Finished)
    assert seen[:6] in (["ada", "bob"] * 3, ["bob", "ada"] * 3)


def test_a_source_may_be_long_too(model: LocalModel, turns: list[tuple[str, int]]) -> None:
    other = Input(token_ids=LONG.token_ids, name="source", source_only=True)
    patched = Hook("resid_pre.0", edit=Replace(FromInput("source")), inputs=("x",))
    request = RunRequest(
        (other, Input(token_ids=tuple(reversed(LONG.token_ids or ())), name="x")),
        plan=Plan((patched, Hook("resid_post.2", capture=Capture(), inputs=("x",)))),
    )
    [sink] = _submitted(model, ("ada", request))
    rows = _captured(sink)["resid_post.2", ""]
    [plain] = _submitted(model, ("ada", RunRequest((LONG,), plan=Plan((Hook("resid_post.2", capture=Capture()),)))))
    np.testing.assert_allclose(rows, _captured(plain)["resid_post.2", ""], rtol=1e-4, atol=1e-5)
    assert {name for name, _ in turns} == {"run_part"}


def test_gradients_go_by_inputs_and_sweeps_by_plans(model: LocalModel, turns: list[tuple[str, int]]) -> None:
    inputs = tuple(Input(token_ids=(i, 5, 6), name=f"x{i}") for i in range(1, 6))
    plan = Plan((Hook("mlp_act.*", capture=Capture(gradient=True)),))
    [sink] = _submitted(model, ("ada", GradientsRequest(inputs, TARGETS, plan=plan)))
    assert sum(isinstance(event, Finished) for event in sink.events()) == 5
    assert turns == [("gradients", 1)] * 5, "three rows count four times"
    turns.clear()
    [sink] = _submitted(model, ("ada", SweepRequest((SHORT,), TARGETS, PLANS)))
    assert isinstance(list(sink.events())[-1], Finished)
    assert turns == [("sweep", 2)] * 20


@pytest.mark.parametrize("kind", ["sweep", "run", "gradients"])
def test_one_that_is_deserted_ends_with_its_slice(model: LocalModel, turns: list[tuple[str, int]], kind: str) -> None:
    requests = {
        "sweep": SweepRequest((SHORT,), TARGETS, PLANS * 10),
        "run": RunRequest((Input(token_ids=(LONG.token_ids or ()) * 8),)),
        "gradients": GradientsRequest(tuple(Input(token_ids=(i, 5), name=f"x{i}") for i in range(1, 60)), TARGETS),
    }
    sink = QueueSink(model.scheduler)
    job = model.submit(requests[kind], sink, _user("ada"))
    while not turns:
        pass
    model.scheduler.cancel(job)
    model.scheduler.call(lambda: None)  # behind the cancellation
    done = len(turns)
    model.scheduler.call(lambda: None)
    assert len(turns) == done
    assert done < {"sweep": 200, "run": 60, "gradients": 59}[kind], "it was not yet over"
    forwards = model.scheduler._forwards
    assert not forwards._parts
    assert not forwards._prefixes
    assert not len(model.scheduler._runs)


def test_generations_keep_their_share(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that counts a slice as long as ten steps: between two slices lie thirty steps."""
    clock, seen = [0.0], list[str]()
    backend, engine = model.backend, model.backend.engine
    assert engine is not None
    part, step = backend.run_part, engine.step

    def slow_part(*args: Any) -> Any:
        seen.append("part")
        clock[0] += 10.0
        return part(*args)

    def quick_step() -> Any:
        seen.append("step")
        clock[0] += 1.0
        return step()

    monkeypatch.setattr("probewire.server.worker.scheduler.time", _Clock(clock))
    monkeypatch.setattr(backend, "run_part", slow_part)
    monkeypatch.setattr(engine, "step", quick_step)
    generation = GenerateRequest((SHORT,), sampling=Sampling(max_new_tokens=300, ignore_eos=True))
    sinks = _submitted(model, ("bob", generation), ("ada", RunRequest((LONG,))))
    for sink in sinks:
        assert isinstance(list(sink.events())[-1], Finished)
    first = seen.index("step")
    counts = [len(run) for run in "".join("p" if s == "part" else "s" for s in seen[first:]).split("p")][1:-1]
    assert len(counts) >= 5
    assert all(29 <= n <= 31 for n in counts), counts


class _Clock:
    """Stands where the scheduler's `time` is."""

    def __init__(self, now: list[float]) -> None:
        self.now = now

    def perf_counter(self) -> float:
        return self.now[0]

    def monotonic(self) -> float:
        return self.now[0]


def test_what_cannot_be_cut_waits_for_a_quiet_moment(model: LocalModel, turns: list[tuple[str, int]]) -> None:
    """One input's gradient of 240 rows is thought to take six seconds here."""
    heavy = GradientsRequest((LONG,), TARGETS)
    light = [("bob", RunRequest((SHORT,))) for _ in range(5)]
    sinks = _submitted(model, ("ada", heavy), *light)
    for sink in sinks:
        assert isinstance(list(sink.events())[-1], Finished)
    assert turns[-1] == ("gradients", 1), "it came last, and it came"


def test_two_of_them_do_not_wait_for_each_other(model: LocalModel) -> None:
    for sink in _submitted(model, *((user, GradientsRequest((LONG,), TARGETS)) for user in ("ada", "bob"))):
        assert isinstance(list(sink.events())[-1], Finished)


def test_a_client_sees_nothing_of_it(model: LocalModel) -> None:
    client = Client.inprocess(InProcessService(model))
    swept = client.sweep(SHORT, Logit(5), [[hook("mlp_out.1", Scale(0.1 * i))] for i in range(7)], progress=False)
    assert swept.array().shape == (7,)
