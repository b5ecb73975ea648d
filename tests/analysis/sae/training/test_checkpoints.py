"""Checkpoints: whole or absent, whatever happens while they are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from probewire.analysis.sae.training import checkpoints
from probewire.analysis.sae.training.checkpoints import latest_checkpoint, save_checkpoint, write_json
from probewire.clients import FailedPrecondition


class Counter:
    """As small as something that resumes can be; may fail while it is saved."""

    def __init__(self, value: int, *, fails: bool = False) -> None:
        self.value, self.fails = value, fails

    def save_state(self, folder: Path) -> None:
        (folder / "value").write_text(str(self.value))
        if self.fails:
            raise OSError("no space left on device")

    def load_state(self, folder: Path) -> None:
        self.value = int((folder / "value").read_text())


def names(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "checkpoints").iterdir())


def test_the_last_one_is_found_and_older_ones_go(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    for step in (9, 10):
        save_checkpoint(tmp_path, step, {"a": Counter(step), "b": Counter(-step)}, {"row": step})
    assert names(tmp_path) == ["step-000000010"]
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert (found.step, found.names, found.data) == (10, ("a", "b"), {"row": 10})
    for name, value in (("a", 10), ("b", -10)):
        counter = Counter(0)
        found.restore(name, counter)
        assert counter.value == value


def test_all_are_kept_where_asked(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step, {"a": Counter(step)}, {}, keep_all=True)
    assert names(tmp_path) == ["step-000000005", "step-000000010", "step-000000015"]


def test_one_that_could_not_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, {"a": Counter(5)}, {})
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(tmp_path, 10, {"a": Counter(10, fails=True)}, {})
    found = latest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 5
    save_checkpoint(tmp_path, 10, {"a": Counter(10)}, {})
    assert names(tmp_path) == ["step-000000010"], "what was left half written is gone"


def test_the_same_step_may_be_saved_again(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 5, {"a": Counter(5)}, {})
    save_checkpoint(tmp_path, 5, {"a": Counter(6)}, {})
    found = latest_checkpoint(tmp_path)
    assert found is not None
    counter = Counter(0)
    found.restore("a", counter)
    assert counter.value == 6


def test_what_was_being_removed_is_not_taken_for_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 5, {"a": Counter(5)}, {})

    def interrupted(path: Path, *, ignore_errors: bool = False) -> None:
        if not ignore_errors:
            (path / "stream.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.discard(tmp_path / "checkpoints" / "step-000000005")
    assert latest_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, 5, {"a": Counter(6)}, {})
    save_checkpoint(tmp_path, 10, {"a": Counter(7)}, {})
    assert names(tmp_path) == ["step-000000010"]


def test_nothing_has_its_name_before_it_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[Path] = []
    to_disk = checkpoints._to_disk

    def watched(path: Path) -> None:
        flushed.append(path)
        assert not (tmp_path / "checkpoints" / "step-000000005").exists() or path.name == "checkpoints"
        to_disk(path)

    monkeypatch.setattr(checkpoints, "_to_disk", watched)
    save_checkpoint(tmp_path, 5, {"a": Counter(5)}, {})
    assert {path.name for path in flushed} == {"value", "a", "stream.json", ".writing", "checkpoints"}


def test_one_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    found = save_checkpoint(tmp_path, 5, {"a": Counter(5)}, {})
    (found.folder / "a" / "value").write_text("five")
    with pytest.raises(
        FailedPrecondition, match=r"step-000000005/a cannot be read .*; remove .*step-000000005 to start"
    ):
        found.restore("a", Counter(0))
    (found.folder / "stream.json").write_text("{")
    with pytest.raises(FailedPrecondition, match=r"step-000000005 cannot be read"):
        latest_checkpoint(tmp_path)


def test_json_is_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_json(path, {"steps": 1})
    with pytest.raises(ValueError, match="Out of range float values"):
        write_json(path, {"steps": float("nan")})
    assert path.read_text() == '{\n "steps": 1\n}'
    write_json(path, {"steps": 2})
    assert [found.name for found in tmp_path.iterdir()] == ["run.json"]
