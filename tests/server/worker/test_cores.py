"""Threads follow the cores that nobody else keeps busy: down at once, up once it stays calm."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from probewire.server.worker import cores as module
from probewire.server.worker.cores import Cores, most_threads, usable_cores


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setattr(module, "usable_cores", lambda: 8)
    return []


def test_down_at_once_and_up_when_it_stays_calm(chosen: list[int]) -> None:
    cores = Cores(8, chosen.append)
    for others in (0.3, 1.0, 5.2, 0.1, 0.1, 0.1):
        cores._fit(others)
    assert chosen == [7, 3, 8], "a little of a core is everybody's; one calm look is not yet calm"
    cores._fit(40.0)
    assert chosen[-1] == 1, "never none"


def test_never_more_than_asked_for(chosen: list[int]) -> None:
    cores = Cores(2, chosen.append)
    for others in (7.0, 0.0, 0.0, 0.0, 0.0):
        cores._fit(others)
    assert chosen == [1, 2]


def test_an_operators_number_stays(chosen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_S", 0.0)
    monkeypatch.setattr(Cores, "_seen", lambda _: pytest.fail("nobody needs to look"), raising=True)
    cores = Cores.__new__(Cores)
    cores.n, cores._most, cores._use, cores._fixed = 4, 4, chosen.append, True
    cores.look()
    assert chosen == []


def test_before_a_model_is_loaded(chosen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first forwards are the load's own, before anybody looks."""
    monkeypatch.setattr(module, "FIRST_LOOK_S", 0.0)
    monkeypatch.setattr(Cores, "_others", lambda _: 5.2)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert Cores.at_load(0, chosen.append).n == 3
    assert Cores.at_load(6, chosen.append).n == 6, "an operator's number"
    assert Cores.at_load(None, chosen.append).n == 0, "the library's own"
    assert chosen == [], "there is no backend to tell"


def test_fewer_threads_where_the_environment_says_so(chosen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    for told, n in (("3", 3), ("4,2", 4), ("0", 8), ("none", 8), ("", 8), ("99", 8)):
        monkeypatch.setenv("OMP_NUM_THREADS", told)
        assert most_threads() == n, told
    assert chosen == []


def test_what_others_use_is_seen_and_what_is_ours_is_not(chosen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a second of real time: a process that computes, pinned to a core of ours."""
    seen: list[float] = []
    cores = Cores(8, chosen.append)
    monkeypatch.setattr(cores, "_fit", seen.append)
    monkeypatch.setattr(module, "LOOK_S", 1.0)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        before = cores._before[0]
        while not seen:
            sum(range(10_000))  # ours
            cores.look()
    finally:
        busy.kill()
        busy.wait()
    assert cores._before[0] > before
    assert 0.0 < seen[0] <= (os.cpu_count() or 1)  # how much of a core it had says how busy this machine is
    assert usable_cores() >= 1


def test_the_containers_share_counts(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_own_cores", lambda: list(range(16)))
    monkeypatch.setattr(module, "CPU_MAX", tmp_path / "cpu.max")
    assert usable_cores() == 16
    (tmp_path / "cpu.max").write_text("300000 100000\n")
    assert usable_cores() == 3
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert usable_cores() == 16
