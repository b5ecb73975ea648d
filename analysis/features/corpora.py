"""Texts of four domains that are on every machine: nothing is downloaded, and nothing of them is kept."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from ...protos.errors import FailedPrecondition

__all__ = ["DOMAINS", "domain_texts"]

DOMAINS = ("mathematics", "code", "prose", "dialogue")
LONGEST, SHORTEST = 2000, 200
"""Characters of a text."""


def domain_texts(n: int = 60, *, seed: int = 0) -> dict[str, list[str]]:
    """`n` texts of each domain: SymPy's docstrings, the standard library's source, its language reference, and talks of ours.

    They depend on the installed versions. Raises FailedPrecondition where SymPy is not installed (it comes with torch).
    """
    rng = random.Random(seed)
    found = {
        "mathematics": _docstrings("sympy", rng),
        "code": _source(rng),
        "prose": _reference(),
        "dialogue": _talks(4 * n, rng),
    }
    texts: dict[str, list[str]] = {}
    for name, some in found.items():
        kept = [text[:LONGEST] for text in some if len(text) >= SHORTEST]
        rng.shuffle(kept)
        texts[name] = kept[:n]
    return texts


def _docstrings(package: str, rng: random.Random) -> list[str]:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise FailedPrecondition(
            f"the texts of mathematics are docstrings of {package}, which is not installed: pip install {package}"
        )
    root = Path(spec.origin).parent
    files = [
        path
        for part in ("functions", "matrices", "sets", "geometry", "ntheory")
        for path in (root / part).rglob("*.py")
    ]
    files = sorted(path for path in files if "tests" not in path.parts)
    rng.shuffle(files)
    return [text for path in files[:80] for text in _of_file(path)]


def _of_file(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield text


def _source(rng: random.Random) -> list[str]:
    """Functions and classes of the standard library, without their docstrings' beginnings: from the first line of code on."""
    import json

    folder = Path(json.__file__).parents[1]
    files = sorted(path for path in folder.glob("*.py") if path.stat().st_size > 5000)
    rng.shuffle(files)
    texts: list[str] = []
    for path in files[:60]:
        source = path.read_text(encoding="utf-8", errors="replace")
        body = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef | ast.FunctionDef))
        texts += [ast.unparse(_bare(node)) for node in body]
    return texts


def _bare(node: ast.ClassDef | ast.FunctionDef) -> ast.ClassDef | ast.FunctionDef:
    """Without docstrings, which are prose."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(inner) and len(inner.body) > 1:
            inner.body = inner.body[1:]
    return node


def _reference() -> list[str]:
    """The language reference that pydoc carries, a topic at a time, in running text alone."""
    from pydoc_data.topics import topics

    texts: list[str] = []
    for topic in topics.values():
        lines = [line for line in topic.splitlines() if line[:1].isalpha() and "::=" not in line]
        text = " ".join(lines)
        texts += [text[start : start + LONGEST] for start in range(0, len(text), LONGEST)]
    return texts


_PEOPLE = ("Ada", "Ben", "Chloe", "Dev", "Elif", "Femi", "Grace", "Hugo", "Ines", "Jonas")
_THINGS = (
    "bread",
    "the bus",
    "my keys",
    "the garden",
    "dinner",
    "the film",
    "your sister",
    "the window",
    "a new coat",
    "the dog",
)
_ASKED = (
    "Did you think about {thing} today?",
    "Have you seen what happened with {thing}?",
    "What shall we do about {thing}?",
    "Could you help me with {thing} later?",
    "Why are you always late because of {thing}?",
    "Do you remember when we talked about {thing}?",
)
_ANSWERED = (
    "Oh, not really. I was busy all morning, and then I forgot.",
    "Yes, of course! I wanted to ask you the same.",
    "I don't know, {name}. Let's talk about it tonight.",
    "Sorry, I was on the phone with my mother.",
    "Please don't start with that again, I'm tired.",
    "That sounds lovely, thank you so much!",
    "Hmm, well, maybe we should go there together.",
    "No way! Are you joking?",
)


def _talks(n: int, rng: random.Random) -> list[str]:
    texts: list[str] = []
    for _ in range(n):
        one, other = rng.sample(_PEOPLE, 2)
        lines: list[str] = []
        for _ in range(rng.randint(5, 10)):
            lines.append(f"{one}: {rng.choice(_ASKED).format(thing=rng.choice(_THINGS))}")
            lines.append(f"{other}: {rng.choice(_ANSWERED).format(name=one)}")
        texts.append("\n".join(lines))
    return texts
