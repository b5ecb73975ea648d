"""An iterator that any thread may close."""

from __future__ import annotations

import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import pytest

from probewire.clients.transport.closable import Closable
from probewire.protos.errors import Cancelled, Unavailable


def counted(ends: list[str], n: int = 10) -> Generator[int]:
    try:
        yield from range(n)
    finally:
        ends.append("closed")


def test_closing_ends_it_and_closes_what_it_reads_once() -> None:
    ends, interrupts = list[str](), list[str]()
    items = Closable(counted(ends), lambda: interrupts.append("interrupted"))
    assert [next(items), next(items)] == [0, 1]
    for _ in range(3):
        items.close()
    assert list(items) == []
    assert (ends, interrupts) == (["closed"], ["interrupted"])


def test_after_the_end_closing_is_harmless() -> None:
    ends = list[str]()
    items = Closable(counted(ends, 2))
    assert list(items) == [0, 1]
    items.close()
    assert ends == ["closed"]
    Closable(iter([1])).close()  # what cannot be closed need not be


def test_only_what_closing_brings_is_not_raised() -> None:
    def broken(error: Exception) -> Generator[int]:
        yield 0
        raise error

    items = Closable(broken(Unavailable("gone")))
    assert next(items) == 0
    with pytest.raises(Unavailable, match="gone"):
        next(items)
    told = threading.Event()

    def waits() -> Generator[int]:
        assert told.wait(20)
        raise Cancelled("as asked")
        yield 0

    inside = threading.Event()

    def entered() -> Generator[int]:
        inside.set()
        yield from waits()

    items = Closable(entered(), told.set)
    with ThreadPoolExecutor(1) as pool:
        rest = pool.submit(list, items)
        assert inside.wait(20)
        items.close()
        assert rest.result(20) == []


def test_whoever_is_inside_closes_it_when_he_comes_out() -> None:
    inside, go_on, ends = threading.Event(), threading.Event(), list[str]()

    def slow() -> Generator[int]:
        try:
            inside.set()
            assert go_on.wait(20)
            yield 1
        finally:
            ends.append(threading.current_thread().name)

    items = Closable(slow())
    with ThreadPoolExecutor(2, thread_name_prefix="reader") as pool:
        readers = [pool.submit(list, items) for _ in range(2)]
        assert inside.wait(20)
        items.close()
        assert ends == [], "a generator that runs cannot be closed"
        go_on.set()
        assert [reader.result(20) for reader in readers] == [[], []]
    [end] = ends
    assert end.startswith("reader")


def test_readers_take_turns() -> None:
    items = Closable(counted([], 2000))
    with ThreadPoolExecutor(4) as pool:
        found = [pool.submit(list, items) for _ in range(4)]
        assert sorted(item for one in found for item in one.result(20)) == list(range(2000))
