"""Shares of a model's slots and tokens, without a model."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings, strategies as st

from probewire.protos.errors import ResourceExhausted
from probewire.server.worker.fair_queue import FairQueue, Ledger


def queue_of(n_slots: int, **waiting: int) -> FairQueue[str]:
    queue = FairQueue[str](Ledger(), 1000, n_slots)
    for user, n in waiting.items():
        for i in range(n):
            queue.push(user, 1.0, f"{user}{i}", 10, 0.0, {})
    return queue


def first(queue: FairQueue[str], running: dict[str, int]) -> str | None:
    return next((user for user, _ in queue.candidates(running)), None)


def test_each_users_own_are_first_come_first_served() -> None:
    queue = queue_of(8, ada=3)
    assert [queue.pop("ada") for _ in range(3)] == ["ada0", "ada1", "ada2"]
    assert len(queue) == 0
    assert queue.users == set()


def test_a_lone_user_leaves_one_slot_to_a_newcomer() -> None:
    queue = queue_of(4, ada=5)
    assert first(queue, {"ada": 2}) == "ada"
    assert first(queue, {"ada": 3}) is None
    queue.push("bob", 1.0, "bob0", 10, 0.0, {"ada": 3})
    assert first(queue, {"ada": 3}) == "bob"
    assert first(queue, {"ada": 3, "bob": 1}) is None


def test_whoever_has_the_box_to_himself_may_fill_it() -> None:
    assert first(queue_of(4, local=5), {"local": 3}) == "local"
    assert first(queue_of(4, local=5), {"local": 4}) is None


def test_while_others_wait_nobody_holds_more_than_his_share() -> None:
    queue = queue_of(8, ada=5, bob=5)
    assert first(queue, {"ada": 4, "bob": 1}) == "bob"
    queue = queue_of(8, ada=5)  # bob runs and wants no more
    assert first(queue, {"ada": 5, "bob": 1}) == "ada"
    assert first(queue_of(2, ada=1, bob=1, eve=1), {"ada": 1}) in ("bob", "eve"), "a share is never below one slot"
    assert first(queue_of(1, ada=1), {}) == "ada", "one slot is not kept from everybody"


def test_the_least_served_goes_first_by_weight() -> None:
    queue = queue_of(0, ada=1, bob=1)
    queue.ledger.charge("ada", 100)
    queue.ledger.charge("bob", 60)
    assert first(queue, {}) == "bob"
    queue.pop("bob")
    queue.push("chief", 2.0, "chief0", 10, 0.0, {})  # enters level with the least served who is here: ada, at 100
    queue.ledger.charge("chief", 100)  # counts half
    queue.ledger.charge("ada", 60)
    assert first(queue, {}) == "chief"


def test_idleness_earns_no_credit() -> None:
    queue = queue_of(0, ada=1)
    queue.ledger.charge("ada", 1000)
    queue.push("bob", 1.0, "bob0", 10, 0.0, {})
    assert queue.ledger.served("bob") == queue.ledger.served("ada")


def test_a_full_queue_refuses_and_nobody_fills_more_than_half() -> None:
    queue = FairQueue[str](Ledger(), 10, 2)
    for i in range(5):
        queue.expect("ada", 1, 3.0)
        queue.push("ada", 1.0, str(i), 1, 0.0, {})
        queue.arrived("ada", 1)
    with pytest.raises(ResourceExhausted, match="of ada") as caught:
        queue.expect("ada", 1, 3.0)
    assert caught.value.retry_after_s == 3.0
    with pytest.raises(ResourceExhausted, match="5 inputs are waiting"):
        queue.expect("bob", 6, 3.0)
    queue.expect("bob", 5, 3.0)


def test_a_burst_that_nobody_has_looked_at_yet_keeps_to_the_bounds() -> None:
    """Requests come on any thread, while the owner of the queue makes a long step."""
    queue = FairQueue[str](Ledger(), 10, 2)

    def ask(user: str) -> bool:
        try:
            queue.expect(user, 1, 3.0)
        except ResourceExhausted:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        let_in = Counter(
            user for user, ok in pool.map(lambda user: (user, ask(user)), ["ada", "bob", "eve"] * 40) if ok
        )
    assert let_in.total() == 10
    assert max(let_in.values()) <= 5
    for user, n in let_in.items():
        for i in range(n):
            queue.push(user, 1.0, f"{user}{i}", 7, 0.0, {})
        queue.arrived(user, n)
    assert queue.cost == 70
    queue.discard(lambda item: item.startswith("ada"))
    while (user := first(queue, {})) is not None:
        queue.pop(user)
    assert queue.cost == 0
    assert not queue._counts


def test_overdue_and_unwanted_leave() -> None:
    queue = FairQueue[str](Ledger(), 10, 2)
    for i, since in enumerate((1.0, 2.0, 3.0)):
        queue.push("ada", 1.0, f"a{i}", 1, since, {})
    queue.push("bob", 1.0, "b", 1, 1.5, {})
    assert sorted(queue.overdue(2.5)) == ["a0", "a1", "b"]
    queue.discard(lambda item: item == "a2")
    assert not list(queue)


@settings(max_examples=60)
@given(
    n_slots=st.integers(2, 9),
    users=st.dictionaries(st.sampled_from("abcdef"), st.lists(st.integers(1, 60), min_size=1, max_size=40), min_size=1),
)
def test_any_load_is_served_to_the_end_within_the_bounds(n_slots: int, users: dict[str, list[int]]) -> None:
    """A simulation: a token a step for everyone who runs. Nobody starves, and the rules hold at every admission."""
    queue = FairQueue[tuple[str, int]](Ledger(), 10_000, n_slots)
    for user, lengths in users.items():
        for length in lengths:
            queue.push(user, 1.0, (user, length), length, 0.0, {})
    running: list[list[object]] = []
    had = Counter[str]()
    steps = 0
    while len(queue) or running:
        held = Counter(str(user) for user, _ in running)
        while (user := first_of(queue, held)) is not None:
            others_wait = queue.users - {user}
            active = {name for name, n in held.items() if n} | queue.users
            assert not others_wait or held[user] < max(1, n_slots // len(active))
            assert held.total() < n_slots
            assert held[user] == 0 or held.total() < n_slots - 1
            running.append(list(queue.pop(user)))
            held[user] += 1
        assert running, "somebody waits although every slot is free"
        for one in running:
            had[str(one[0])] += 1
            queue.ledger.charge(str(one[0]), 1)
            one[1] = int(str(one[1])) - 1
        running = [one for one in running if one[1]]
        steps += 1
        assert steps < 20_000
    assert had == Counter({user: sum(lengths) for user, lengths in users.items()})


def first_of(queue: FairQueue[tuple[str, int]], held: Counter[str]) -> str | None:
    return next((user for user, _ in queue.candidates(held)), None)


def test_four_equal_users_get_equal_tokens() -> None:
    """Seven of eight slots for four users, generations of very different lengths: Jain's index over tokens."""
    queue = FairQueue[tuple[str, int]](Ledger(), 100_000, 8)
    for i in range(400):
        for user, length in (("a", 16), ("b", 64), ("c", 8), ("d", 30 + i % 7)):
            queue.push(user, 1.0, (user, length), length, 0.0, {})
    running: list[tuple[str, int]] = []
    had = Counter[str]()
    for _ in range(800):
        held = Counter(user for user, _ in running)
        while (user := first_of(queue, held)) is not None:
            running.append(queue.pop(user))
            held[user] += 1
        for user, _ in running:
            had[user] += 1
            queue.ledger.charge(user, 1)
        running = [(user, left - 1) for user, left in running if left > 1]
    served = list(had.values())
    assert sum(served) ** 2 / (len(served) * sum(x * x for x in served)) >= 0.95
