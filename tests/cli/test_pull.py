"""`probewire pull` as a user meets it: what it prints, and how it ends."""

import argparse
from pathlib import Path

import pytest

from probewire.backends.checkpoints import Checkpoint, Progress
from probewire.cli import pull
from probewire.protos.errors import NotFound


def pull_with(*words: str) -> int:
    parser = argparse.ArgumentParser()
    pull.add_arguments(parser)
    return pull.run(parser.parse_args(words))


@pytest.fixture
def asked(monkeypatch):
    """Stands in for resolve_model and keeps what it was asked."""
    calls = []

    def resolve_model(name, *, revision, cache_dir, progress, licensed):
        assert licensed
        calls.append((name, revision, cache_dir))
        for done in (0, 50, 100):
            progress(Progress("download", done, 100))
        progress(Progress("done", 100, 100))
        return Checkpoint(Path("/cache/tiny"), "someone/tiny", "hub", "abc123", "f" * 64)

    monkeypatch.setattr(pull, "resolve_model", resolve_model)
    monkeypatch.delenv("PROBEWIRE_CACHE", raising=False)
    return calls


def test_says_where_the_model_is(asked, capsys):
    assert pull_with("someone/tiny", "--revision", "main") == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["someone/tiny is ready in /cache/tiny", "revision   abc123", f"model hash {'f' * 64}"]
    assert err == "Downloading …\n"
    assert asked == [("someone/tiny", "main", None)]


def test_the_default_model_and_the_cache_folder(asked, monkeypatch):
    pull_with()
    monkeypatch.setenv("PROBEWIRE_CACHE", "/from/environment")
    pull_with()
    pull_with("--cache-dir", "/from/option")
    assert asked == [(None, None, None), (None, None, Path("/from/environment")), (None, None, Path("/from/option"))]


def test_the_licence_is_named_before_the_download(asked, capsys):
    assert pull_with("gemma-3-270m") == 0
    lines = capsys.readouterr().err.splitlines()
    assert "Gemma Terms of Use: https://ai.google.dev/gemma/terms" in lines[0]
    assert lines[1] == "Downloading …"


def test_an_error_is_one_line(monkeypatch, capsys):
    def resolve_model(*_, **__):
        raise NotFound("there is no folder '/x'")

    monkeypatch.setattr(pull, "resolve_model", resolve_model)
    assert pull_with("/x") == 1
    assert capsys.readouterr().err == "probewire pull: there is no folder '/x'\n"


def test_interrupted(monkeypatch, capsys):
    def resolve_model(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pull, "resolve_model", resolve_model)
    assert pull_with() == 130
    assert "run it again to go on" in capsys.readouterr().err


def test_a_bar_with_bytes_on_a_terminal(asked, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    assert pull_with() == 0
    assert "100/100 bytes" in capsys.readouterr().err
