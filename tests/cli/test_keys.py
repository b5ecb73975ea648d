"""Keys of a pseudo-terminal, and the state that it is left in."""

from __future__ import annotations

import io
import os
import signal
import termios
import threading
import time
from collections.abc import Iterator
from typing import TextIO

import pytest

from probewire.cli.keys import keyboard, parse


@pytest.fixture
def terminal() -> Iterator[tuple[int, TextIO]]:
    """Where keys are pressed, and the stream that a program reads."""
    master, slave = os.openpty()
    with os.fdopen(slave) as stream:
        yield master, stream
    os.close(master)


def echoes(stream: TextIO) -> bool:
    return bool(termios.tcgetattr(stream)[3] & (termios.ECHO | termios.ICANON))


@pytest.mark.parametrize(
    ("text", "keys", "rest"),
    [
        ("+-0", ["+", "-", "0"], ""),
        ("\x1b[A\x1b[B\x1bOA\x1bOB", ["up", "down", "up", "down"], ""),
        ("x\x1b[1;5Ay\x1b[3~", ["x", "y"], ""),  # keys of more than one meaning to us are none
        ("+\x1b", ["+"], "\x1b"),
        ("\x1b[", [], "\x1b["),
        ("\x1b+", ["+"], ""),  # Escape, then a key
        ("\n", ["\n"], ""),
    ],
)
def test_keys_by_name(text: str, keys: list[str], rest: str) -> None:
    assert parse(text) == (keys, rest)


def test_keys_come_one_by_one_even_in_halves(terminal: tuple[int, TextIO]) -> None:
    master, stream = terminal
    with keyboard(stream) as keys:
        assert keys is not None
        assert not echoes(stream)
        os.write(master, b"+\x1b[")
        assert keys.read(5) == ["+"]
        assert keys.read(0.01) == []
        os.write(master, b"A")
        assert keys.read(5) == ["up"]
    assert echoes(stream)


def test_what_was_typed_before_is_not_lost(terminal: tuple[int, TextIO]) -> None:
    master, stream = terminal
    os.write(master, b"hi\n")
    with keyboard(stream):
        pass
    assert stream.readline() == "hi\n"


def test_a_waiting_read_is_woken(terminal: tuple[int, TextIO]) -> None:
    with keyboard(terminal[1]) as keys:
        assert keys is not None
        thread = threading.Timer(0.05, keys.wake)
        thread.start()
        began = time.monotonic()
        assert keys.read(10) == []
        assert keys.read(10) == []  # for good
        assert time.monotonic() - began < 5
        thread.join()


def test_the_terminal_is_restored_whatever_happens(terminal: tuple[int, TextIO]) -> None:
    for error in (ZeroDivisionError, KeyboardInterrupt):
        with pytest.raises(error), keyboard(terminal[1]):
            raise error
        assert echoes(terminal[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_process_restores_it_too(terminal: tuple[int, TextIO], number: signal.Signals) -> None:
    with pytest.raises(SystemExit) as caught, keyboard(terminal[1]):
        signal.raise_signal(number)
    assert caught.value.code == 128 + number
    assert echoes(terminal[1])
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_terminal_that_goes_away_is_not_asked_again_and_again() -> None:
    master, slave = os.openpty()
    with os.fdopen(slave) as stream, keyboard(stream) as keys:
        assert keys is not None
        os.close(master)
        assert keys.read(1) == []
        began = time.monotonic()
        assert keys.read(0.1) == []
        assert time.monotonic() - began > 0.05


def test_what_is_no_terminal_has_no_keys() -> None:
    with keyboard(io.StringIO("+")) as keys:
        assert keys is None
