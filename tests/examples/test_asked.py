"""The table of what was asked for names functions, pages and scripts that there are, and every script."""

from __future__ import annotations

import ast
import re
from importlib import import_module
from pathlib import Path

from probewire.clients import Client

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "asked.md").read_text(encoding="utf-8")
HELPERS = {"plots.py", "serving.py"}
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if re.match(r"\| (\d+|00\d) \|", line)
]


def test_all_items_of_the_compendium_and_all_notes_have_rows() -> None:
    assert [row[0] for row in ROWS[:20]] == [str(i) for i in range(1, 21)]
    assert {row[0] for row in ROWS[20:]} == {"000", "001", "002", "003"}
    assert all(len(row) == 5 for row in ROWS)


def test_every_script_is_named_and_is_there() -> None:
    scripts = {path.name for path in (ROOT / "examples").glob("*.py")} - HELPERS
    named = {name for row in ROWS for name in re.findall(r"`(\w+\.py)`", row[4])}
    assert named - scripts == set(), "named and not in examples/"
    assert scripts - named == set(), "in examples/ and named by no item of docs/asked.md"
    assert all(re.search(r"`\w+\.py`", row[4]) for row in ROWS[:20]), "an item of the compendium without a script"


def test_every_function_is_public_somewhere() -> None:
    public = {name for name in dir(Client) if not name.startswith("_")}
    for folder in ("analysis", "clients"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                    public |= set(ast.literal_eval(node.value))
    named = [name for row in ROWS for name in re.findall(r"`(\w+)`", row[2])]
    named += [
        name
        for line in PAGE.partition("## NeuroScope")[2].splitlines()
        for name in re.findall(r"`([a-z_]\w+)`", line.rstrip(" |").rpartition("|")[2])
    ]
    assert len(named) > 60
    assert {*named} - public == set()


def test_every_page_and_heading_is_there() -> None:
    for target in re.findall(r"\]\((\w+\.md)(?:#([\w-]+))?\)", PAGE):
        text = (ROOT / "docs" / target[0]).read_text(encoding="utf-8")
        headings = {
            re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
            for line in text.splitlines()
            if line.startswith("#")
        }
        assert not target[1] or target[1] in headings, target


def test_every_script_finds_what_it_imports() -> None:
    """The scripts themselves run in tests that are slow; a function that moved is seen here."""
    for path in (ROOT / "examples").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("probewire"):
                module = import_module(node.module or "")
                for name in node.names:
                    assert hasattr(module, name.name), f"{path.name}: {node.module} has no {name.name}"
