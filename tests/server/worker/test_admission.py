"""Who enters the batch next: by the queue's order, by the room in the cache, and without a model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from probewire.backends.hooks.bound import BoundPlan
from probewire.backends.hooks.sequence import Sequence
from probewire.backends.model.limits import Limits
from probewire.protos.model import Input
from probewire.server.auth.users import LOCAL
from probewire.server.worker.admission import Item, admit_next
from probewire.server.worker.fair_queue import FairQueue, Ledger
from probewire.server.worker.input.prepared import PreparedInput


@dataclass
class Job:
    """What admission looks at of a request."""

    ended: bool = False


@dataclass
class Room:
    """A backend whose engine has a cache of so many positions, and notes who came in."""

    free: int = 100
    n_slots: int = 4
    cache_tokens: int = 100
    entered: list[str] = field(default_factory=list[str])
    kept: list[int] = field(default_factory=list[int])
    broken: str = ""

    @property
    def limits(self) -> Limits:
        return Limits(n_slots=self.n_slots, context_tokens=self.cache_tokens, cache_tokens=self.cache_tokens)

    @property
    def engine(self) -> Room:
        return self

    def admit(self, sequence: Sequence, *, keep_tokens: int = 0) -> bool:
        if sequence.id == self.broken:
            raise RuntimeError("no more memory")
        self.kept.append(keep_tokens)
        if sequence.plan.n_rows + keep_tokens > self.free:
            return False
        self.free -= sequence.plan.n_rows
        self.entered.append(sequence.id)
        return True


class Box:
    """A queue, a room, and who has how many slots."""

    def __init__(self, **room: Any) -> None:
        self.room = Room(**room)
        self.queue: FairQueue[Item] = FairQueue(Ledger(), 1000, self.room.n_slots)
        self.running: Counter[str] = Counter()
        self.jobs: dict[str, Any] = {}

    def wait(self, user: str, name: str, rows: int, *, ended: bool = False) -> None:
        plan = BoundPlan("generate", rows, rows, (), {}, {}, {})
        item = PreparedInput(Input(token_ids=(1,), name=name), [1] * rows, True, Sequence(name, [1] * rows, rows, plan))
        self.jobs[name] = job = Job(ended)
        entry: Any = (job, item)
        self.queue.push(user, 1.0, entry, rows, 0.0, self.running)

    def next(self) -> str | None:
        """The name of whoever left the queue."""
        backend: Any = self.room
        found = admit_next(self.queue, backend, self.running)
        self.error = None if found is None else found.error
        if found is None:
            return None
        assert found.job is self.jobs[found.item.item.name]
        return found.item.item.name


def test_the_first_in_the_queue_gets_a_slot_and_is_charged_for_its_prompt() -> None:
    box = Box()
    box.wait("ada", "a", 30)
    assert box.next() == "a"
    assert box.room.entered == ["a"]
    assert (box.running["ada"], box.queue.ledger.served("ada"), len(box.queue)) == (1, 30, 0)


def test_an_empty_queue_admits_nobody() -> None:
    assert Box().next() is None


def test_who_has_ended_meanwhile_leaves_the_queue_and_takes_nothing() -> None:
    box = Box()
    box.wait("ada", "a", 30, ended=True)
    assert box.next() == "a"
    assert (box.room.entered, box.running["ada"], box.queue.ledger.served("ada")) == ([], 0, 0)


def test_one_that_does_not_fit_waits_at_its_place() -> None:
    box = Box(free=20)
    box.wait("ada", "big", 30)
    box.wait("ada", "small", 5)
    assert box.next() is None, "her own later one does not overtake it"
    assert len(box.queue) == 2
    box.room.free = 30
    assert box.next() == "big"


def test_whoever_has_no_slot_passes_one_that_does_not_fit() -> None:
    box = Box(free=20)
    box.wait("ada", "big", 30)
    box.wait("bob", "small", 5)
    assert box.next() == "small"


def test_whoever_has_a_slot_does_not_pass_one_that_does_not_fit() -> None:
    box = Box(free=30, n_slots=8)
    box.running["bob"] = 1
    box.wait("ada", "big", 60)
    box.queue.ledger.charge("bob", 1)  # so that it is ada's turn
    box.wait("bob", "small", 5)
    assert box.next() is None
    assert box.room.entered == []
    box.room.free = 100
    assert (box.next(), box.next()) == ("big", "small")


def test_who_has_a_slot_leaves_a_slots_share_of_cache_to_a_newcomer() -> None:
    box = Box()
    box.wait("ada", "first", 10)
    box.wait("ada", "second", 70)
    assert box.next() == "first"
    assert box.next() is None, "90 are free, and 25 of them are a newcomer's"
    assert box.room.kept == [0, 25]
    box.room.free = 95
    assert box.next() == "second"


def test_whoever_has_the_box_alone_leaves_no_share() -> None:
    box = Box()
    box.wait(LOCAL.name, "first", 10)
    box.wait(LOCAL.name, "second", 90)
    assert (box.next(), box.next()) == ("first", "second")
    assert box.room.kept == [0, 0]


def test_the_queues_bounds_on_slots_hold() -> None:
    box = Box(n_slots=2)
    for name in ("a", "b"):
        box.wait("ada", name, 5)
    assert (box.next(), box.next()) == ("a", None), "the last slot is a newcomer's"


def test_one_whose_admission_fails_leaves_with_the_reason() -> None:
    box = Box(broken="a")
    box.wait("ada", "a", 5)
    box.wait("ada", "b", 5)
    assert box.next() == "a"
    assert isinstance(box.error, RuntimeError)
    assert (box.running["ada"], box.queue.ledger.served("ada")) == (0, 0)
    assert box.next() == "b"
    assert box.error is None


@pytest.mark.parametrize("n", [1, 5])
def test_one_call_admits_one(n: int) -> None:
    box = Box(n_slots=8)
    for i in range(n):
        box.wait(LOCAL.name, f"x{i}", 5)
    box.next()
    assert (len(box.room.entered), len(box.queue)) == (1, n - 1)
