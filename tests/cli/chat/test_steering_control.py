"""What keys make of a chat's setting, and that the server hears of it first."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterable

import numpy as np
import pytest
from fake_server import wait_for  # pyright: ignore[reportMissingImports] - lies beside the clients' tests
from fake_service import FakeService  # pyright: ignore[reportMissingImports] - as above

from probewire.cli.chat.keys import Turning, turning
from probewire.cli.chat.shows import parse_show
from probewire.cli.chat.steering import Steering
from probewire.cli.chat.steering_control import Setting, SteeringControl
from probewire.clients import Add, Client, Hook, InvalidArgument, Unavailable

V = np.array([1.0, 0, 0, 0], np.float32)
UP, DOWN = Steering("resid_post.1", V, 4.0, "v"), Steering("resid_post.2", V, -2.0, "w")
BOTH = Setting((UP, DOWN))


def alphas_of(hooks: Iterable[Hook]) -> list[float]:
    return [hook.edit.alpha for hook in hooks if isinstance(hook.edit, Add)]


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def control(service: FakeService) -> SteeringControl:
    return SteeringControl(Client(service=service), "fake")


@pytest.mark.parametrize(
    ("keys", "alphas", "label"),
    [
        (["up"], [5.0, -2.5], "× 5, -2.5"),
        (["+", "=", "up"], [7.0, -3.5], "× 7, -3.5"),
        (["down", "-", "_"], [1.0, -0.5], "× 1, -0.5"),
        (["down"] * 5, [-1.0, 0.5], "× -1, 0.5"),
        (["0"], None, "off"),
        (["0", "0"], [4.0, -2.0], "× 4, -2"),
        (["0", "up"], [5.0, -2.5], "× 5, -2.5"),
        (["x", "\n"], [4.0, -2.0], "× 4, -2"),
        (["down"] * 4, None, "× 0, -0"),
    ],
)
def test_keys(keys: list[str], alphas: list[float] | None, label: str) -> None:
    setting = BOTH.pressed(keys)
    assert setting.label() == label
    assert alphas_of(setting.hooks()) == (alphas or [])
    assert setting.steers is (alphas is not None)


def test_other_keys_change_nothing() -> None:
    assert BOTH.pressed(["x", "\t"]) is BOTH


def test_shows_come_last_so_that_they_see_steered_values(control: SteeringControl) -> None:
    info = Client(service=FakeService()).describe()
    setting = Setting((UP,), (parse_show("resid_post.1", info),))
    assert [hook.capture is None for hook in setting.hooks()] == [True, False]
    assert [hook.capture is None for hook in setting.pressed(["0"]).hooks()] == [False]
    assert setting.lines() == ["steer resid_post.1 + 4 × v (norm 1)", "show  a resid_post.1:norm"]
    assert setting.pressed(["0"]).lines()[0].endswith("(off; 0 while a reply streams, or /alpha, turns it on)")


def test_a_session_is_made_when_it_is_first_needed_and_forgotten_at_the_end(
    control: SteeringControl, service: FakeService
) -> None:
    control.change(Setting())
    assert (control.session, control.revision, service.live.kept) == ("", 0, {})
    control.change(BOTH)
    control.change(BOTH.pressed(["up"]))
    [session] = service.live.kept.values()
    assert (session.name, session.model, session.revision) == ("probewire chat", "fake", 2)
    assert alphas_of(session.plan.hooks) == [5.0, -2.5]
    assert [control.label(n) for n in (1, 2, 3)] == ["×4,-2·r1", "×5,-2.5·r2", "r3"]
    control.change(Setting())
    assert service.live.kept[session.id].plan.hooks == ()
    control.close()
    assert service.live.kept == {}
    control.close()  # it was deleted: nothing to complain of


def test_what_the_server_refuses_changes_nothing(control: SteeringControl, service: FakeService) -> None:
    bad = Setting((Steering("resid_post.9", V, 1.0, "v"),))
    for _ in range(2):
        with pytest.raises(InvalidArgument, match="0:3"):
            control.change(bad)
    assert control.setting.steerings == ()
    control.change(BOTH)
    with pytest.raises(InvalidArgument):
        control.change(bad)
    assert (control.setting, control.revision) == (BOTH, 1)


def test_a_session_that_somebody_else_changed_or_deleted_is_taken_back(
    control: SteeringControl, service: FakeService
) -> None:
    control.change(BOTH)
    Client(service=service).sessions()[0].update(())
    control.change(BOTH.pressed(["up"]))
    assert control.revision == 3
    service.live.kept.clear()
    control.change(BOTH)
    assert (control.revision, len(service.live.kept)) == (1, 1)


def test_pressing_tells_of_itself(control: SteeringControl, service: FakeService) -> None:
    control.change(BOTH)
    turned, lines = Turning(control), list[str]()
    turned.redraw = lambda: lines.append(turned.status().plain)
    turned.press(["up", "up"])
    assert lines == [
        "steering × 4, -2 · …   ↑ ↓ strength · 0 off",
        "steering × 6, -3 · r2   ↑ ↓ strength · 0 off",
    ]
    turned.press(["x"])
    assert len(lines) == 2

    def gone(request):
        raise Unavailable("no connection")

    service.live.update = gone
    turned.press(["0"])
    assert lines[-1] == "not changed: no connection"
    assert control.setting.on


def test_without_a_terminal_there_are_no_keys(control: SteeringControl) -> None:
    control.change(BOTH)
    with turning(control) as turned:  # pytest's standard input is no terminal
        assert turned is None


def test_a_server_that_does_not_answer_does_not_hold_the_end_of_a_reply(
    control: SteeringControl, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    control.change(BOTH)
    update = service.live.update
    asked, answered = threading.Event(), threading.Event()

    def slow(request):
        asked.set()
        answered.wait(20)
        return update(request)

    service.live.update = slow
    monkeypatch.setattr("probewire.cli.chat.keys.LEAVE_S", 0.05)
    master, slave = os.openpty()
    with os.fdopen(slave) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with turning(control) as turned:
            assert turned is not None
            os.write(master, b"+")
            assert asked.wait(20)
        assert control.revision == 1  # it was not waited for
        answered.set()
        assert wait_for(lambda: control.setting.strength == 1.25, 20)
    os.close(master)
    assert control.revision == 2
