"""A session that changes while a generation follows it: before the change the old plan, after it the new, on both backends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from probewire.backends.model.limits import Limits
from probewire.protos.edits import Add, FromInput, Replace, Scale
from probewire.protos.errors import FailedPrecondition, InvalidArgument, NotFound
from probewire.protos.model import (
    Event,
    GenerateRequest,
    Input,
    Revised,
    RunRequest,
    Sampling,
    Started,
    TensorFrame,
    Token,
)
from probewire.protos.sessions import CreateSessionRequest, UpdateSessionRequest
from probewire.protos.spec import Capture, Condition, Hook, Mean, Plan, Span, Where
from probewire.protos.tensors import Tensor
from probewire.protos.wire.assemble import AssembledCapture, assemble
from probewire.server.config import WorkerConfig
from probewire.server.worker.inprocess import InProcessService
from probewire.server.worker.model import LocalModel
from probewire.server.worker.output.delivery import ActiveRequest
from probewire.server.worker.scheduler import Scheduler
from tests.tiny_models import tiny_checkpoint

PROMPT = "When Mary and John went to"
TOLERANCE = 1e-4  # relative, float32: that of the parity matrix
WIDTH = 64
RNG = np.random.default_rng(7)
FIRST, SECOND = (Tensor.of(RNG.standard_normal(WIDTH).astype(np.float32)) for _ in range(2))
CAPTURES = (Hook("resid_post.*", capture=Capture()), Hook("logits", capture=Capture()))


@pytest.fixture(scope="module", params=["torch", "mlx"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessService]:
    folder: Path = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    engine = Limits(n_slots=4, context_tokens=512, cache_tokens=2048, chunk_tokens=8)
    made = InProcessService(
        LocalModel(WorkerConfig(model=str(folder), id="tiny", backend=request.param, engine=engine), folder)
    )
    yield made
    made.close()


def steer(vector: Tensor, *, where: Where | None = None) -> Hook:
    return Hook("resid_post.0", edit=Add(vector, alpha=3.0), where=where or Where())


def request(session: str, n: int = 60, hooks: tuple[Hook, ...] = CAPTURES) -> GenerateRequest:
    sampling = Sampling(max_new_tokens=n, ignore_eos=True)
    return GenerateRequest((Input(PROMPT),), plan=Plan(hooks), sampling=sampling, session=session)


def updated_after(
    service: InProcessService, n_tokens: int, session: str, plan: Plan, asked: GenerateRequest
) -> list[Event]:
    """The events of a generation whose session was updated, once, after so many tokens had come."""
    events: list[Event] = []
    for event in service.generate(asked):
        events.append(event)
        if sum(isinstance(e, Token) for e in events) == n_tokens and isinstance(event, Token):
            service.update_session(UpdateSessionRequest(session, plan))
    return events


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() <= TOLERANCE * max(1.0, float(np.abs(b).max())))


def test_a_session_updated_mid_generation_equals_a_forced_run_that_switches_plan_there(
    service: InProcessService,
) -> None:
    session = service.create_session(CreateSessionRequest(Plan((steer(FIRST),)), name="live"))
    events = updated_after(service, 10, session.id, Plan((steer(SECOND),)), request(session.id))
    service.delete_session(session.id)

    started = next(e for e in events if isinstance(e, Started))
    tokens = [e for e in events if isinstance(e, Token)]
    [revised] = [e for e in events if isinstance(e, Revised)]
    assert (started.revision, revised.revision) == (1, 2)
    assert {e.revision for e in tokens} == {1, 2}
    assert [e.revision for e in tokens] == sorted(e.revision for e in tokens)
    # Every row names the revision that its own forward ran under: that gives the position where the plan switched.
    frames = [e for e in events if isinstance(e, TensorFrame)]
    first_new = min(p for f in frames if f.revision == 2 for p in f.positions)
    assert all((f.revision == 2) == (p >= first_new) for f in frames for p in f.positions)
    n_prompt = len(started.inputs[0].token_ids)
    assert first_new >= n_prompt + 9  # not before the tenth token was out
    # The token that position p sampled has p's revision.
    assert [e.revision for e in tokens] == [1 + (n_prompt - 1 + e.index >= first_new) for e in tokens]

    ids = [*started.inputs[0].token_ids, *(e.id for e in tokens)][:-1]
    forced = Plan(
        (
            steer(FIRST, where=Where(spans=(Span(0, first_new),))),
            steer(SECOND, where=Where(spans=(Span(first_new, None),))),
            *CAPTURES,
        )
    )
    again = service.run(RunRequest((Input(token_ids=tuple(ids), prompt_length=n_prompt),), plan=forced))
    expected = {key.site: c for key, c in assemble(e for e in again if isinstance(e, TensorFrame)).items()}
    found: dict[str, AssembledCapture] = {key.site: c for key, c in assemble(frames).items()}
    assert len(found) == 4
    for site, capture in found.items():
        rows = expected[site].array[list(capture.positions)]
        assert close(capture.array, rows), (site, np.abs(capture.array - rows).max())
    # And greedy decoding under those logits gives those very tokens.
    logits = expected["logits"].array[n_prompt - 1 :]
    assert logits.argmax(-1).tolist() == [e.id for e in tokens]


def test_two_callers_steered_apart_in_one_batch_are_as_each_alone(service: InProcessService) -> None:
    plans = [Plan((steer(FIRST),)), Plan((steer(Tensor.of(-FIRST.numpy())),))]
    sessions = [service.create_session(CreateSessionRequest(plan)) for plan in plans]

    def said(session: str) -> tuple[list[int], np.ndarray]:
        events = list(service.generate(request(session, 24)))
        [rows] = [
            c.array
            for k, c in assemble(e for e in events if isinstance(e, TensorFrame)).items()
            if k.site == "resid_post.2"
        ]
        return [e.id for e in events if isinstance(e, Token)], rows

    alone = [said(session.id) for session in sessions]
    together: dict[int, tuple[list[int], np.ndarray]] = {}
    threads = [
        threading.Thread(target=lambda i=i, s=s: together.__setitem__(i, said(s.id))) for i, s in enumerate(sessions)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, (ids, rows) in enumerate(alone):
        assert together[i][0] == ids
        assert close(together[i][1], rows)
    assert alone[0][0] != alone[1][0]


def test_a_hook_that_changes_is_another_capture_and_reductions_end_with_their_plan(service: InProcessService) -> None:
    old = Plan((Hook("resid_post.1", capture=Capture(reduce=Mean())), Hook("resid_post.2", capture=Capture())))
    new = Plan((Hook("resid_post.1", capture=Capture(reduce=Mean()), where=Where(phase="generated")), old.hooks[1]))
    session = service.create_session(CreateSessionRequest(old))
    events = updated_after(service, 5, session.id, new, request(session.id, 20, hooks=()))
    frames = [e for e in events if isinstance(e, TensorFrame)]
    means = [(f.revision, f.hook_revision) for f in frames if f.sites == ("resid_post.1",)]
    assert means == [(1, 1), (2, 2)]
    whole = [c for k, c in assemble(frames).items() if k.site == "resid_post.2"]
    assert len(whole) == 1, "an unchanged hook goes on as one capture"
    assert len(whole[0].positions) == len(set(whole[0].positions)) == len(PROMPT) + 1 + 19
    at = next(i for i, e in enumerate(events) if isinstance(e, Revised))
    assert all(f.revision == 1 for f in events[:at] if isinstance(f, TensorFrame))
    assert all(f.revision == 2 for f in events[at:] if isinstance(f, TensorFrame))


def test_a_queued_generation_starts_with_the_latest_revision(service: InProcessService) -> None:
    session = service.create_session(CreateSessionRequest(Plan((steer(FIRST),))))
    busy = [iter(service.generate(request("", 300, ()))) for _ in range(4)]  # every slot
    for stream in busy:
        next(stream)
    waiting = iter(service.generate(request(session.id, 8)))
    assert isinstance(started := next(waiting), Started)
    assert started.revision == 1
    service.update_session(UpdateSessionRequest(session.id, Plan((steer(SECOND),))))
    for stream in busy:
        stream.close()  # pyright: ignore[reportAttributeAccessIssue]  it is a generator
    events = list(waiting)
    assert isinstance(events[0], Revised)
    assert {e.revision for e in events if isinstance(e, (Token, TensorFrame))} == {2}
    alone = list(service.generate(request(session.id, 8)))
    assert [e.id for e in events if isinstance(e, Token)] == [e.id for e in alone if isinstance(e, Token)]


def updated_on_the_way(monkeypatch: pytest.MonkeyPatch, service: InProcessService, session: str, plan: Plan) -> None:
    """The session changes once the next request is made ready, and before the model's thread accepts it."""
    submit = Scheduler.submit

    def late(scheduler: Scheduler, job: ActiveRequest) -> None:
        monkeypatch.setattr(Scheduler, "submit", submit)
        assert job.prepared.started.revision == 1
        service.update_session(UpdateSessionRequest(session, plan))
        submit(scheduler, job)

    monkeypatch.setattr(Scheduler, "submit", late)


def test_an_update_between_the_check_and_the_queue_holds_from_the_first_step(
    service: InProcessService, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = service.create_session(CreateSessionRequest(Plan((steer(FIRST),))))
    before = [e.id for e in service.generate(request(session.id, 8)) if isinstance(e, Token)]
    updated_on_the_way(monkeypatch, service, session.id, Plan((steer(SECOND),)))
    events = list(service.generate(request(session.id, 8)))
    after = [e.id for e in service.generate(request(session.id, 8)) if isinstance(e, Token)]
    started = events[0]
    assert isinstance(started, Started)
    assert started.revision == 2
    assert not [e for e in events if isinstance(e, Revised)]
    assert {e.revision for e in events if isinstance(e, (Token, TensorFrame))} == {2}
    assert [e.id for e in events if isinstance(e, Token)] == after != before


def test_an_update_on_the_way_that_the_request_cannot_follow_refuses_it(
    service: InProcessService, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = service.create_session(CreateSessionRequest(Plan((steer(FIRST),))))
    outside = steer(FIRST, where=Where(positions=(400,)))
    updated_on_the_way(monkeypatch, service, session.id, Plan((outside,)))
    with pytest.raises(InvalidArgument, match="400"):
        list(service.generate(request(session.id, 8)))
    assert service.session(session.id).revision == 2


def test_an_update_that_one_generation_cannot_follow_changes_nothing(service: InProcessService) -> None:
    session = service.create_session(CreateSessionRequest(Plan((steer(FIRST),))))
    stream = iter(service.generate(request(session.id, 40)))
    next(event for event in stream if isinstance(event, Token))  # it has begun
    latching = Hook(
        "resid_post.1",
        edit=Scale(2.0),
        where=Where(when=Condition(threshold=0.0, direction=FIRST, latch="mean")),
    )
    outside = steer(FIRST, where=Where(positions=(400,)))
    for hook, message in ((latching, "latches on the prompt"), (outside, "400")):
        with pytest.raises(InvalidArgument, match=message):
            service.update_session(UpdateSessionRequest(session.id, Plan((hook,))))
    assert service.session(session.id).revision == 1
    rest = list(stream)
    assert not [e for e in rest if isinstance(e, Revised)]
    assert {e.revision for e in rest if isinstance(e, Token)} == {1}


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (Hook("resid_post.1", capture=Capture(store=True)), "cannot store"),
        (Hook("resid_post.1", capture=Capture(), inputs=("input",)), "knows no inputs"),
        (Hook("resid_post.1", edit=Replace(FromInput("other"))), "knows no inputs"),
        (Hook("resid_post.9", capture=Capture()), "layer"),
        (Hook("resid_post.1", edit=Add(Tensor.of(np.ones(3, np.float32)))), "64"),
    ],
)
def test_what_a_session_cannot_hold_is_refused_when_it_is_made(
    service: InProcessService, hook: Hook, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        service.create_session(CreateSessionRequest(Plan((hook,))))


def test_revisions_guard_against_lost_updates(service: InProcessService) -> None:
    session = service.create_session(CreateSessionRequest(Plan((steer(FIRST),))))
    service.update_session(UpdateSessionRequest(session.id, Plan((steer(SECOND),)), revision=1))
    with pytest.raises(FailedPrecondition, match="revision 2"):
        service.update_session(UpdateSessionRequest(session.id, Plan(), revision=1))
    service.delete_session(session.id)
    for use in (
        lambda: service.session(session.id),
        lambda: service.update_session(UpdateSessionRequest(session.id)),
        lambda: list(service.generate(request(session.id, 2))),
    ):
        with pytest.raises(NotFound, match=session.id):
            use()


def test_the_slots_are_free_again(service: InProcessService) -> None:
    end = time.monotonic() + 10
    while service.activity().models[0].status.running and time.monotonic() < end:
        time.sleep(0.02)
    status = service.activity().models[0].status
    assert (status.running, status.waiting, status.cache_used_tokens) == (0, 0, 0)
    assert status.steps > 0
    assert status.hook_s > 0
