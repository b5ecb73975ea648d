"""No module needs itself: what imports what has no circle, under TYPE_CHECKING and inside functions neither."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest


def imports_of(root: Path, sources: list[Path]) -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports, both as paths."""
    modules = {path.with_suffix("").as_posix() for path in sources}
    return {name: set(_found(root, name, modules)) for name in modules}


def _found(root: Path, name: str, modules: set[str]) -> Iterator[str]:
    folder = name.split("/")[:-1]
    for node in ast.walk(ast.parse((root / f"{name}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = "/".join([*folder[: len(folder) - node.level + 1], *(node.module or "").split(".")]).rstrip("/")
            for alias in node.names:
                candidates = (f"{base}/{alias.name}", f"{base}/{alias.name}/__init__", base, f"{base}/__init__")
                yield from [found for found in candidates if found in modules][:1]


def circle(imports: dict[str, set[str]]) -> list[str]:
    """The modules of a circle, the first again at its end; empty where there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_nothing_is_imported_in_a_circle(root: Path, package_sources: list[Path]) -> None:
    assert circle(imports_of(root, package_sources)) == []


@pytest.mark.parametrize(
    "line",
    [
        "from .b import B",
        "from . import b",
        "def f():\n    from .b import B",
        "if TYPE_CHECKING:\n    from .b import B",
    ],
)
def test_a_circle_is_found(tmp_path: Path, line: str) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x/a.py").write_text(line)
    (tmp_path / "x/b.py").write_text("from ..x.a import A")
    sources = [Path("x/a.py"), Path("x/b.py")]
    assert set(circle(imports_of(tmp_path, sources))) == {"x/a", "x/b"}
    (tmp_path / "x/a.py").write_text("from ..y import other")
    assert circle(imports_of(tmp_path, sources)) == []
