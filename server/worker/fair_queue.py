"""Which waiting input goes next, so that users share a model however much each of them asks for.

Fairness lives at admission, as nothing is preempted. Users are served by the virtual token counter of Sheng et al.,
"Fairness in Serving Large Language Models" (OSDI 2024): the one who has had the fewest tokens for their weight goes
first, and whoever comes back after a pause starts from the least served of those who stayed, so that idleness earns
no credit. On top of it two bounds on slots, for generations: see `FairQueue.may_start`.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ...protos.errors import ResourceExhausted
from ..auth.users import LOCAL

__all__ = ["FairQueue", "Ledger"]

T = TypeVar("T")


class Ledger:
    """Tokens that each user has had, divided by their weight: only the differences mean anything."""

    def __init__(self) -> None:
        self._served: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def enter(self, user: str, weight: float, active: set[str]) -> None:
        """A user who had nothing here asks for something; `active` are the others who have."""
        floor = min((self._served[name] for name in active if name in self._served), default=0.0)
        self._served[user] = max(self._served.get(user, 0.0), floor)
        self._weights[user] = weight

    def charge(self, user: str, tokens: int) -> None:
        """A user has had so many tokens."""
        self._served[user] = self._served.get(user, 0.0) + tokens / self._weights.get(user, 1.0)

    def served(self, user: str) -> float:
        """Tokens had, by weight."""
        return self._served.get(user, 0.0)

    def keep(self, active: set[str]) -> None:
        """Forget who has not been here for long, once there are many; nobody active."""
        if len(self._served) > 1024:
            floor = min((self._served[name] for name in active if name in self._served), default=0.0)
            self._served = {n: s for n, s in self._served.items() if n in active or s > floor}
            self._weights = {n: w for n, w in self._weights.items() if n in self._served}


@dataclass(eq=False, slots=True)
class _Waiting(Generic[T]):
    item: T
    cost: int
    since_s: float


@dataclass(eq=False)
class FairQueue(Generic[T]):
    """What waits for one kind of service, by user; first come, first served for each user alone.

    Owned by one thread; `expect` and `cost` are for any. What is expected counts as waiting until it has `arrived`, so
    that a burst which the owner has not yet looked at cannot pass the bounds.
    """

    ledger: Ledger
    max_waiting: int
    n_slots: int = 0
    """Slots that the service has; 0: no bound but the order."""
    _queues: dict[str, deque[_Waiting[T]]] = field(default_factory=dict[str, deque[_Waiting[T]]])
    _counts: Counter[str] = field(default_factory=Counter[str])
    """User → what waits or is expected; under the lock, as `_queues` is not."""
    _cost: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    @property
    def users(self) -> set[str]:
        """Who waits."""
        return set(self._queues)

    @property
    def cost(self) -> int:
        """Tokens that wait, all users'."""
        return self._cost

    def expect(self, user: str, n: int, retry_after_s: float) -> None:
        """Set room aside for `n` more, until they have `arrived`. Raises ResourceExhausted when they do not fit; nobody
        may fill more than half of the queue."""
        with self._lock:
            waiting, own = self._counts.total(), self._counts[user]
            if waiting + n > self.max_waiting:
                raise ResourceExhausted(
                    f"{waiting} inputs are waiting already, of at most {self.max_waiting}; try again later",
                    retry_after_s=retry_after_s,
                )
            most = max(1, self.max_waiting // 2)
            if user != LOCAL.name and own + n > most:
                raise ResourceExhausted(
                    f"{own} inputs of {user} are waiting already, of at most {most} for one user; try again later",
                    retry_after_s=retry_after_s,
                )
            self._counts[user] += n

    def arrived(self, user: str, n: int) -> None:
        """What was expected is here: from now on what is pushed counts."""
        self._count(user, -n, 0)

    def _count(self, user: str, n: int, cost: int) -> None:
        with self._lock:
            self._cost += cost
            self._counts[user] += n
            if not self._counts[user]:
                del self._counts[user]

    def push(self, user: str, weight: float, item: T, cost: int, now_s: float, running: Mapping[str, int]) -> None:
        """Wait. `running`: how many slots each user holds."""
        active = {name for name, n in running.items() if n} | self.users
        if user not in active:
            self.ledger.enter(user, weight, active)
            self.ledger.keep(active | {user})
        self._queues.setdefault(user, deque()).append(_Waiting(item, cost, now_s))
        self._count(user, 1, cost)

    def candidates(self, running: Mapping[str, int]) -> Iterator[tuple[str, T]]:
        """The users who may start something now, least served first, each with what they would start."""
        for user in sorted(self._queues, key=self.ledger.served):
            if self.may_start(user, running):
                yield user, self._queues[user][0].item

    def first(self, user: str) -> T:
        """What a user would start."""
        return self._queues[user][0].item

    def may_start(self, user: str, running: Mapping[str, int]) -> bool:
        """While others wait, nobody holds more than slots ÷ active users; and the last slot is a newcomer's."""
        if not self.n_slots:
            return True
        total, own = sum(running.values()), running.get(user, 0)
        if total >= self.n_slots:
            return False
        if own == 0 or user == LOCAL.name:  # whoever has the box alone keeps no slot free
            return True
        active = {name for name, n in running.items() if n} | self.users
        others_wait = any(name != user for name in self.users)
        share = max(1, self.n_slots // len(active)) if others_wait else self.n_slots
        return own < share and total < self.n_slots - 1

    def pop(self, user: str) -> T:
        """Take a user's first out, because it starts or is not wanted any more."""
        queue = self._queues[user]
        waiting = queue.popleft()
        if not queue:
            del self._queues[user]
        self._count(user, -1, -waiting.cost)
        return waiting.item

    def overdue(self, before_s: float) -> list[T]:
        """Take out all that came before a time."""
        out: list[T] = []
        for user in list(self._queues):
            while user in self._queues and self._queues[user][0].since_s < before_s:
                out.append(self.pop(user))
        return out

    def discard(self, unwanted: Callable[[T], bool]) -> None:
        """Take out what nobody waits for any more."""
        for user, queue in list(self._queues.items()):
            kept = deque(waiting for waiting in queue if not unwanted(waiting.item))
            self._count(user, len(kept) - len(queue), sum(w.cost for w in kept) - sum(w.cost for w in queue))
            if kept:
                self._queues[user] = kept
            else:
                del self._queues[user]

    def __iter__(self) -> Iterator[T]:
        return (waiting.item for queue in self._queues.values() for waiting in queue)
