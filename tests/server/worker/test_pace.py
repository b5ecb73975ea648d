"""How many rows go into a forward, by the time that forwards have taken; the clock is a list of numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from probewire.server.worker import pace as module
from probewire.server.worker.pace import Pace

CHUNK = 64
REQUEST = object()


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Pace:
    made = Pace()
    monkeypatch.setattr(module, "rows_a_second", lambda _: 1000.0)
    nothing_of_it_is_used: Any = None
    made.try_out(nothing_of_it_is_used)
    return made


def _forward(pace: Pace, monkeypatch: pytest.MonkeyPatch, rows: int, seconds: float, kind: str = "run") -> None:
    clock: Iterator[float] = iter((0.0, seconds))
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    with pace.timed(kind, REQUEST, rows):
        pass


def test_runs_find_the_same_company_until_the_pace_is_another(pace: Pace, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,000 rows a second are 200 in a slice: three chunks and a bit."""
    assert pace.rows("run", REQUEST, 0.2, CHUNK) == 192
    _forward(pace, monkeypatch, 140, 0.1)
    assert pace.rows("run", REQUEST, 0.2, CHUNK) == 192  # 240 fit
    _forward(pace, monkeypatch, 65, 0.1)
    assert pace.rows("run", REQUEST, 0.2, CHUNK) == 192  # 130 fit: not yet half as many again
    _forward(pace, monkeypatch, 60, 0.1)
    assert pace.rows("run", REQUEST, 0.2, CHUNK) == 64  # 120 fit
    _forward(pace, monkeypatch, 1, 0.1)
    assert pace.rows("run", REQUEST, 0.2, CHUNK) == 64  # never less than a chunk
    _forward(pace, monkeypatch, 10_000, 0.1)
    assert pace.rows("run", REQUEST, 0.2, CHUNK) == 9984  # 10,002 fit


def test_what_costs_nobody_knows_begins_small(pace: Pace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pace.rows("sweep", REQUEST, 0.2) == 50
    _forward(pace, monkeypatch, 50, 0.5, "sweep")
    assert pace.rows("sweep", REQUEST, 0.2) == 20
    assert pace.rows("sweep", object(), 0.2) == 20, "the next one begins as the last one went"
    pace.forget(REQUEST)
    assert pace.rows("sweep", REQUEST, 0.2) == 20
    _forward(pace, monkeypatch, 1, 10.0, "gradients")
    assert pace.rows("gradients", REQUEST, 0.2) == 1
    assert pace.seconds("gradients", 2) == pytest.approx(20.0)
