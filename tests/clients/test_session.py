"""Live sessions: made, changed and followed over every transport."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from fake_service import FakeService, expected

from probewire.clients import (
    Client,
    FailedPrecondition,
    Generation,
    Internal,
    InvalidArgument,
    NotFound,
    capture,
    load,
    steer,
)
from probewire.protos.activity import ActivityReport, ModelActivity, RequestActivity, WorkerStatus
from probewire.protos.sessions import UpdateSessionRequest

UP = np.array([1.0, 0, 0, 0], np.float32)


def push(alpha: float):
    """The next token is `alpha` further on."""
    return steer("resid_post.1", UP, alpha)


def at(step: int, action: Callable[[], object]) -> Callable[[int], None]:
    """What the fake calls before each step: does something before one of them."""

    def before_step(index: int) -> None:
        if index == step:
            action()

    return before_step


def test_made_changed_listed_and_deleted(client: Client, service: FakeService) -> None:
    live = client.session([push(2), capture("embed", id="e")], name="calm")
    assert (live.name, live.model, live.revision, live.hooks) == (
        "calm",
        "fake",
        1,
        (push(2), capture("embed", id="e")),
    )
    assert repr(live) == (
        f"LiveSession('calm', id={live.id!r}, model='fake', revision=1: Add at resid_post.1, Capture at embed)"
    )
    assert live.update(push(3)) is live
    assert (live.revision, live.hooks) == (2, (push(3),))
    assert [(found.id, found.revision) for found in client.sessions()] == [(live.id, 2)]
    assert client.get_session(live.id).plan == live.plan
    live.delete()
    assert client.sessions() == []
    for call in (live.delete, live.refresh, lambda: client.get_session(live.id)):
        with pytest.raises(NotFound, match="no session 'ses-1'"):
            call()


def test_a_long_plan_is_told_in_short(client: Client) -> None:
    assert repr(client.session([capture(f"resid_post.{i % 3}") for i in range(6)])).endswith(
        "revision=1: Capture at resid_post.0, Capture at resid_post.1, Capture at resid_post.2, Capture at resid_post.0, "
        "2 more)"
    )
    assert repr(client.session()) == "LiveSession(id='ses-2', model='fake', revision=1: no hooks)"


def test_a_session_ends_with_its_block(client: Client, service: FakeService) -> None:
    with client.session(push(1)) as live:
        assert client.get_session(live.id).revision == 1
    assert service.live.kept == {}
    with client.session() as live:
        live.delete()  # deleted meanwhile: nothing to say
    with pytest.raises(ZeroDivisionError), client.session():
        raise ZeroDivisionError


def test_an_update_made_from_an_older_revision_is_refused_unless_forced(client: Client) -> None:
    live = client.session(push(1))
    other = client.get_session(live.id).update(push(5))
    with pytest.raises(FailedPrecondition, match="is at revision 2, not 1"):
        live.update(push(2))
    assert (live.revision, live.hooks) == (1, (push(1),))
    assert live.update(push(2), force=True).revision == 3
    with pytest.raises(FailedPrecondition):
        other.update(())
    assert other.refresh().update(()).revision == 4
    assert other.hooks == ()


def test_hooks_that_the_model_cannot_honour_change_nothing(client: Client) -> None:
    with pytest.raises(InvalidArgument, match="0:3"):
        client.session(capture("embed"), name="x").update(capture("resid_post.7"))
    with pytest.raises(InvalidArgument, match="0:3"):
        client.session(capture("resid_post.7"))
    with pytest.raises(InvalidArgument, match="printable"):
        client.session(name="a\nb")
    assert [live.revision for live in client.sessions()] == [1]


def test_ids_that_are_none(client: Client) -> None:
    for session_id in ("", "../models", "a/b"):
        with pytest.raises(NotFound):
            client.get_session(session_id)
    with pytest.raises(NotFound):
        client.generate("a", session="nope")


def test_a_generation_follows_its_session(client: Client, service: FakeService) -> None:
    live = client.session(push(1))
    service.before_step = at(2, lambda: live.update(push(10)))
    with client.stream("abc", session=live, max_new_tokens=4) as stream:
        assert (stream.revision, [hook.sites for hook in stream.hooks]) == (1, [("resid_post.1",)])
        told = [(step.text, step.revision, stream.revision) for step in stream]
    assert told == [("e", 1, 1), ("g", 1, 1), ("r", 2, 2), ("}", 2, 2)]
    assert stream.started.revision == 1
    request = service.requests[-1]
    assert (request.session, request.model) == (live.id, "fake")  # pyright: ignore[reportAttributeAccessIssue] - it is a GenerateRequest


def test_a_session_may_be_named_by_its_id(client: Client, service: FakeService) -> None:
    assert client.generate("abc", session=client.session(push(1)).id, max_new_tokens=2).text == "eg"


def test_hooks_of_a_stream_are_those_of_its_revision(client: Client, service: FakeService) -> None:
    live = client.session(capture("embed", id="a"))
    service.before_step = at(1, lambda: live.update([push(0), capture("embed", id="b")]))
    with client.stream("a", capture="logits", session=live, max_new_tokens=2) as stream:
        first, second = next(stream), next(stream)
        assert [hook.id for hook in stream.hooks] == ["hook0", "hook1", "b"]
    assert ("a" in first, "b" in first, "a" in second, "b" in second) == (True, False, False, True)
    assert "logits" in first
    assert "logits" in second


def test_what_is_sent_at_the_end_names_its_revision_too(client: Client, service: FakeService) -> None:
    with client.stream("ab", capture=capture("embed", reduce="mean"), max_new_tokens=2) as stream:
        *_, last = stream
    assert (last.token, last.revision) == (None, 0)


def test_rows_of_a_hook_that_changed_are_different_captures(client: Client, service: FakeService, tmp_path) -> None:
    kept, before, after = capture("embed"), capture("resid_post.0"), capture("resid_post.0", dtype="float32")
    live = client.session([kept, before])
    service.before_step = at(2, lambda: live.update([kept, after]))
    result = client.generate("abc", session=live, max_new_tokens=4)
    assert [(revised.revision, len(revised.hooks)) for revised in result.only.revisions] == [(2, 2)]
    assert [token.revision for token in result.only.new] == [1, 1, 2, 2]
    np.testing.assert_array_equal(result["embed"], expected("embed", [97, 98, 99, 100, 101, 102]))
    with pytest.raises(
        InvalidArgument,
        match=r"resid_post.0 was captured by hook 1 \(id 'hook1'\) as it is since revisions 1 and 2; "
        r"choose one: \.revision\(1\)\['resid_post.0'\]",
    ):
        result["resid_post.0"]
    assert result.captures.revisions == (1, 2)
    assert result.revision(1).positions("resid_post.0") == (0, 1, 2, 3)
    assert result.only.revision(2).positions("resid_post.0") == (4, 5)
    assert result.hook("hook1").revision(2)["resid_post.0"].shape == (2, 4)
    with pytest.raises(NotFound, match="since revision 3; there are: 1, 2"):
        result.revision(3)
    loaded = load(result.save(tmp_path / "r.safetensors"))
    assert isinstance(loaded, Generation)
    assert repr(loaded) == repr(result)
    assert loaded.only.revisions == result.only.revisions
    assert [entry.key for entry in loaded.captures.entries] == [entry.key for entry in result.captures.entries]
    np.testing.assert_array_equal(loaded.revision(2)["resid_post.0"], result.revision(2)["resid_post.0"])
    assert repr(result).splitlines()[5:] == [
        "  session       revision 2 from token 2",
        "  embed         [pos 6, d_model 4] bfloat16  hook 'hook0'  since revision 1",
        "  resid_post.0  [pos 4, d_model 4] bfloat16  hook 'hook1'  since revision 1",
        "  resid_post.0  [pos 2, d_model 4] bfloat16  hook 'hook1'  since revision 2",
    ]


def test_how_to_choose_is_said_so_that_it_works(client: Client, service: FakeService) -> None:
    """A hook of the same id that moved to another place: neither its id nor one word more tells the two apart."""
    moved = capture("embed", id="e")
    live = client.session(moved)
    service.before_step = at(1, lambda: live.update([push(0), moved]))
    result = client.generate("abc", session=live, max_new_tokens=2)
    with pytest.raises(InvalidArgument, match=r"choose one: \.hook\(0\)\['embed'\] or \.revision\(1\)\['embed'\]$"):
        result["embed"]
    assert result.hook(0).positions("embed") == result.revision(1).positions("embed") == (0, 1, 2)
    assert result.hook(1).positions("embed") == (3,)


def test_a_session_that_captures_is_enough_for_generate_with_activations(client: Client) -> None:
    with client.session(capture("resid_post.0")) as live:
        for session in (live, live.id):
            assert client.generate_with_activations("abc", session=session, max_new_tokens=1).sites == ("resid_post.0",)
        live.update(push(1))
        with pytest.raises(InvalidArgument, match="captures nothing"):
            client.generate_with_activations("abc", session=live)


def test_activity(client: Client, service: FakeService) -> None:
    assert client.activity() == ActivityReport()
    service.report = ActivityReport(
        (ModelActivity("fake", "ready", "numpy", "cpu", 2, 1 << 30, WorkerStatus(running=3, tokens=12, step_s=0.5)),),
        (
            RequestActivity(
                "req-1", "ada", "fake", "Inference.Generate", "running", ("resid_post.*",), "calm", 1.5, 7, 64
            ),
        ),
        33.0,
    )
    assert client.activity() == service.report


def test_a_service_may_raise_what_it_likes() -> None:
    service = FakeService()
    service.live.update = lambda request: 1 / 0  # pyright: ignore[reportAttributeAccessIssue] - wrong on purpose
    live = Client(service=service).session()
    with pytest.raises(Internal, match="ZeroDivisionError"):
        live.update(())


def test_the_revision_travels_only_when_it_counts(client: Client, service: FakeService) -> None:
    seen: list[UpdateSessionRequest] = []
    update = service.live.update
    service.live.update = lambda request: seen.append(request) or update(request)
    live = client.session()
    live.update(())
    live.update((), force=True)
    assert [request.revision for request in seen] == [1, None]
