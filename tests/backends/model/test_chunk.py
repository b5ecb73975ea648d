"""How many rows a model makes in a slice is found by trying, on few rows where it is slow. The clock is the test's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from probewire.backends.model import chunk as module
from probewire.backends.model.chunk import rows_a_second, with_chunk
from probewire.backends.model.limits import Limits


@dataclass
class Timed:
    """A model whose forward takes `fixed` seconds and `each` a row."""

    fixed: float
    each: float
    now: float = 0.0
    tried: list[int] = field(default_factory=list[int])

    def final_rows(self, ids: Any) -> Any:
        rows = np.shape(ids)[1]
        self.now += self.fixed + self.each * rows
        self.tried.append(rows)


def _timed(monkeypatch: pytest.MonkeyPatch, fixed: float, each: float) -> Any:
    made = Timed(fixed, each)
    monkeypatch.setattr(module.time, "perf_counter", lambda: made.now)
    return made


def test_a_slow_model_is_not_tried_for_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = _timed(monkeypatch, 0.0, 0.08)
    assert rows_a_second(slow) == pytest.approx(12.5)
    assert slow.tried == [1, 4]


def test_fixed_costs_are_spread_over_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = _timed(monkeypatch, 0.04, 0.001)
    assert rows_a_second(quick) == pytest.approx(64 / 0.104)
    assert quick.tried == [1, 4, 16, 64]


@pytest.mark.parametrize(("each", "rows"), [(0.08, 64), (0.001, 128), (1e-5, 512)])
def test_a_power_of_two_within_bounds(monkeypatch: pytest.MonkeyPatch, each: float, rows: int) -> None:
    assert with_chunk(Limits(chunk_tokens=0), _timed(monkeypatch, 0.0, each)).chunk_tokens == rows


def test_a_chosen_chunk_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = _timed(monkeypatch, 0.0, 0.01)
    assert with_chunk(Limits(chunk_tokens=48), backend).chunk_tokens == 48
    assert backend.tried == []
