"""How fast a worker goes: what is counted, and how long the queue is said to take. By a clock of our own."""

from __future__ import annotations

import pytest

from probewire.protos.activity import WorkerStatus
from probewire.server.worker import throughput as module
from probewire.server.worker.throughput import LONGEST_RETRY_S, MEMORY, SHORTEST_RETRY_S, Throughput


class Clock:
    """Stands where the module's `time` is."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def turn(found: Throughput, clock: Clock, seconds: float, tokens: int = 0) -> None:
    """One turn of the model's thread, with one step in it where there are tokens."""
    with found.busy():
        if tokens:
            found.stepped(1, tokens)
        clock.now_s += seconds


def test_nothing_has_happened_at_first(clock: Clock) -> None:
    found = Throughput()
    assert found.totals() == {"steps": 0, "runs": 0, "rows": 0, "step_s": 0.0, "tokens": 0}
    assert found.busy_s == 0.0


def test_steps_and_runs_are_counted_apart(clock: Clock) -> None:
    found = Throughput()
    with found.busy():
        found.stepped(3, 2)
        found.ran(100)
        clock.now_s += 0.5
    turn(found, clock, 0.25, tokens=4)
    assert found.totals() == {"steps": 2, "runs": 1, "rows": 4, "step_s": 0.75, "tokens": 6}


def test_the_totals_are_fields_of_the_status(clock: Clock) -> None:
    status = WorkerStatus(**Throughput().totals())
    assert (status.steps, status.tokens) == (0, 0)


def test_a_turn_without_work_costs_no_time(clock: Clock) -> None:
    found = Throughput()
    turn(found, clock, 10.0)
    turn(found, clock, 1.0, tokens=1)
    turn(found, clock, 10.0)
    assert found.totals()["step_s"] == 1.0


def test_the_turn_under_way_is_as_long_as_it_has_taken(clock: Clock) -> None:
    found = Throughput()
    with found.busy():
        assert found.busy_s == 0.0
        clock.now_s += 3.0
        assert found.busy_s == 3.0
    assert found.busy_s == 0.0


def test_a_turn_that_fails_is_over_and_counts(clock: Clock) -> None:
    found = Throughput()

    def fail() -> None:
        with found.busy():
            found.ran(10)
            clock.now_s += 2.0
            raise MemoryError

    with pytest.raises(MemoryError):
        fail()
    assert found.busy_s == 0.0
    assert found.totals()["step_s"] == 2.0


def test_before_any_forward_one_is_told_to_come_back_soon(clock: Clock) -> None:
    found = Throughput()
    assert found.seconds_for(0) == found.seconds_for(10**9) == SHORTEST_RETRY_S


def test_the_queue_takes_what_the_recent_pace_says(clock: Clock) -> None:
    found = Throughput()
    turn(found, clock, 0.5, tokens=50)
    assert found.seconds_for(1000) == pytest.approx(10.0)


def test_what_is_said_stays_within_reason(clock: Clock) -> None:
    found = Throughput()
    turn(found, clock, 1.0, tokens=100)
    assert found.seconds_for(0) == found.seconds_for(99) == SHORTEST_RETRY_S
    assert found.seconds_for(10**9) == LONGEST_RETRY_S


def test_the_pace_is_of_late(clock: Clock) -> None:
    found = Throughput()
    turn(found, clock, 1.0, tokens=1000)
    for _ in range(500):
        turn(found, clock, 1.0, tokens=10)
    assert MEMORY**500 < 1e-4
    assert found.seconds_for(100) == pytest.approx(10.0, rel=0.01)


def test_idle_turns_do_not_slow_the_pace(clock: Clock) -> None:
    found = Throughput()
    turn(found, clock, 1.0, tokens=10)
    for _ in range(100):
        turn(found, clock, 60.0)
    assert found.seconds_for(100) == pytest.approx(10.0)


def test_runs_count_for_the_pace(clock: Clock) -> None:
    found = Throughput()
    with found.busy():
        found.ran(40)
        clock.now_s += 2.0
    assert found.seconds_for(100) == pytest.approx(5.0)
    assert found.totals()["tokens"] == 0, "tokens are those that were generated"
