"""What the command does for every action: errors and warnings are a line each, and half a word is no option."""

from __future__ import annotations

import warnings

import pytest

from probewire.cli import pull
from probewire.cli.__main__ import main


def test_a_warning_is_a_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(_: object) -> int:
        warnings.simplefilter("always")  # pytest makes errors of them
        warnings.warn("the SAE was trained elsewhere", stacklevel=2)
        return 0

    monkeypatch.setattr(pull, "run", run)
    before = warnings.showwarning
    assert main(["pull"]) == 0
    assert capsys.readouterr().err == "probewire: the SAE was trained elsewhere\n"
    assert warnings.showwarning is before
