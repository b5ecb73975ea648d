"""Bars are for people: drawn in a terminal, silent elsewhere."""

from __future__ import annotations

import io

import pytest
import rich.console
from fake_service import FakeService

from probewire.clients import Client
from probewire.clients.progress import progress_bar


class _Terminal(rich.console.Console):
    written = io.StringIO()

    def __init__(self, **options: object) -> None:
        super().__init__(file=self.written, force_terminal=True, width=80)


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rich.console, "Console", _Terminal)
    with progress_bar("loading x", "bytes") as bar:
        bar(500_000, 1_000_000, "x: download")
    drawn = _Terminal.written.getvalue()
    assert "x: download" in drawn
    assert "0.5/1.0 MB" in drawn


def test_show_false_is_silent_even_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rich.console, "Console", _Terminal)
    before = _Terminal.written.getvalue()
    with progress_bar("loading x", "tokens", show=False) as bar:
        bar(1, 2)
    assert _Terminal.written.getvalue() == before


def test_nothing_is_written_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    client = Client(service=FakeService())
    client.load("fake")
    client.weights("embed.weight")
    client.generate("a", max_new_tokens=3, progress=True)
    assert capsys.readouterr() == ("", "")
