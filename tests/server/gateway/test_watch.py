"""Probes of one worker: what counts as a good one, as a strike, and as the end. No process is started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from probewire.protos import probewire_pb2 as pb
from probewire.protos.errors import DeadlineExceeded, ProbewireError, Unavailable
from probewire.protos.loading import HealthReport
from probewire.server.config import Supervision
from probewire.server.gateway import watch as module
from probewire.server.gateway.watch import Watch

GOOD, BAD = HealthReport(True, "a forward ran"), HealthReport(False, "the forward failed")
LATE = DeadlineExceeded("no answer to a health probe within 2 s")
NOW_S = 1000.0


class Process:
    """A worker's process that ends when it is killed, or when it is told to."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()
        self.reasons: list[str] = []

    def kill(self, reason: str = "") -> None:
        self.reasons.append(reason)
        self.ended.set()

    @property
    def ending(self) -> str:
        return f"signal 9: {self.reasons[-1]}" if self.reasons else "signal 11"


class Channel:
    """Answers probe after probe as it is told; the process dies when no answer is left."""

    def __init__(self, *answers: HealthReport | ProbewireError, models: tuple[str, ...] = ("m",)) -> None:
        self.answers, self.models = list(answers), models
        self.probes: list[float] = []
        self.last_message_s = 0.0
        self.on_probe: Callable[[int], None] = lambda n: None
        self.process: Process | None = None

    async def health(self, timeout_s: float) -> HealthReport:
        self.probes.append(timeout_s)
        self.on_probe(len(self.probes))
        answer = self.answers.pop(0) if self.answers else GOOD
        if not self.answers and self.process is not None:
            self.process.ended.set()
        if isinstance(answer, ProbewireError):
            raise answer
        return answer

    async def unary(self, method: str, request: bytes, *, timeout_s: float) -> bytes:
        assert method == "/probewire.v1.Models/List"
        models = [pb.ModelInfo(id=name, backend="torch", n_layers=3) for name in self.models]
        return pb.ModelList(models=models).SerializeToString()


class Box:
    """A watch over one channel and one process, by a clock of our own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, channel: Channel, strikes: int = 3) -> None:
        self.now_s = NOW_S
        monkeypatch.setattr(module, "time", self)
        supervision = Supervision(probe_interval_s=0.0, probe_timeout_s=2.0, probe_strikes=strikes)
        self.watch, self.channel = Watch("m", supervision), channel

    def monotonic(self) -> float:
        """Stands where the module's `time` is."""
        return self.now_s

    def until_dead(self) -> tuple[str, Process]:
        async def scenario() -> tuple[str, Process]:
            process = Process()
            self.channel.process = process
            asked: tuple[object, object] = (process, self.channel)
            async with asyncio.timeout(20):
                return await self.watch.until_dead(*asked), process

        return asyncio.run(scenario())


def first(watch: Watch, channel: object) -> str:
    async def scenario() -> str:
        return (await watch.first(channel)).id

    return asyncio.run(scenario())


# ---- the first -------------------------------------------------------------------------------------------------------


def test_a_worker_serves_once_its_first_forward_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box(monkeypatch, Channel(GOOD))
    assert first(box.watch, box.channel) == "m"
    assert box.channel.probes == [6.0], "as long as all strikes together"
    box.now_s += 5.0
    assert box.watch.age_s == 5.0


def test_a_first_forward_that_fails_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box(monkeypatch, Channel(BAD))
    with pytest.raises(Unavailable) as caught:
        first(box.watch, box.channel)
    assert caught.value.message == "model 'm' loaded, but its first forward failed: the forward failed"


def test_a_first_probe_without_an_answer_is_that_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeadlineExceeded, match="no answer"):
        first(Box(monkeypatch, Channel(LATE)).watch, Channel(LATE))


# ---- until it is dead ------------------------------------------------------------------------------------------------


def test_a_process_that_ends_by_itself_is_told_by_how(monkeypatch: pytest.MonkeyPatch) -> None:
    cause, process = Box(monkeypatch, Channel(GOOD, GOOD)).until_dead()
    assert (cause, process.reasons) == ("signal 11", [])


def test_so_many_bad_probes_in_a_row_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box(monkeypatch, Channel(LATE, BAD, LATE, GOOD))
    cause, process = box.until_dead()
    assert process.reasons == ["no answer to a health probe within 2 s, 3 times in a row"]
    assert cause == f"signal 9: {process.reasons[0]}"
    assert box.channel.probes == [2.0] * 3


def test_the_reason_is_that_of_the_last_strike(monkeypatch: pytest.MonkeyPatch) -> None:
    _, process = Box(monkeypatch, Channel(LATE, BAD, GOOD), strikes=2).until_dead()
    assert process.reasons == ["the forward failed, 2 times in a row"]


def test_a_good_probe_forgives_the_strikes_before(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box(monkeypatch, Channel(LATE, LATE, GOOD, BAD, LATE, GOOD))
    _, process = box.until_dead()
    assert process.reasons == []
    assert len(box.channel.probes) == 6


def test_a_worker_whose_streams_move_is_busy_and_not_hung(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box(monkeypatch, Channel(*[LATE] * 10))

    def moved(n: int) -> None:
        box.now_s += 2.0
        box.channel.last_message_s = box.now_s - 0.5

    box.channel.on_probe = moved
    _, process = box.until_dead()
    assert process.reasons == []
    assert box.watch.age_s == 0.5, "what moved is as good as a probe"


def test_what_moved_before_the_probe_is_no_excuse(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box(monkeypatch, Channel(*[LATE] * 4))
    box.channel.last_message_s = NOW_S
    _, process = box.until_dead()
    assert len(process.reasons) == 1


def test_a_bad_probe_leaves_the_age_of_the_last_good_one(monkeypatch: pytest.MonkeyPatch) -> None:
    box = Box(monkeypatch, Channel(GOOD, LATE, BAD))

    def later(n: int) -> None:
        box.now_s += 10.0

    box.channel.on_probe = later
    box.until_dead()
    assert box.watch.age_s == 20.0
