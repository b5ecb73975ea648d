"""Tasks as files: JSON, or JSON lines with one example a line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ...protos.errors import InvalidArgument, NotFound
from .task import Example, Task

__all__ = ["load_task", "save_task"]

NEEDED = ("clean", "corrupt", "correct", "wrong")
OPTIONAL = ("roles", "labels")


def load_task(path: str | Path, name: str = "") -> Task:
    """A task from a file of examples: {"clean": …, "corrupt": …, "correct": " Mary" or […], "wrong": …}.

    Optional in each: "labels" {name: text} and "roles" {name: text that occurs once in the clean prompt, or its
    [start, stop) characters}. A .jsonl file has one example a line; any other is one JSON document, a list of examples
    or {"name", "description", "examples"}. `name`: of the task; default: the file's own. Raises NotFound for no file,
    InvalidArgument with the line or the example that is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFound(f"there is no file {path}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path} is not UTF-8 text: {error}") from error
    document: dict[str, Any] = {}
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        lines = [(f"line {i}", line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
        items = [(place, _parse(line, f"{path}, {place}")) for place, line in lines]
    else:
        document = _document(_parse(text, str(path)), path)
        items = [(f"example {i}", item) for i, item in enumerate(document["examples"])]
    if not items:
        raise InvalidArgument(f"{path} holds no examples")
    examples = tuple(_example(item, f"{path}, {place}") for place, item in items)
    return Task(name or document.get("name") or path.stem, examples, document.get("description") or "")


def save_task(task: Task, path: str | Path) -> Path:
    """Write a task as `load_task` reads it: JSON lines where the name ends in .jsonl, else one JSON document."""
    path = Path(path)
    items = [
        {
            **{key: getattr(example, key) for key in ("clean", "corrupt", "correct", "wrong")},
            "roles": {role: list(span) for role, span in example.roles.items()},
            "labels": dict(example.labels),
        }
        for example in task.examples
    ]
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        text = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    else:
        document = {"name": task.name, "description": task.description, "examples": items}
        text = json.dumps(document, ensure_ascii=False, indent=2) + "\n"
    path.write_text(text, encoding="utf-8")
    return path


def _parse(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if "line" in place else f"line {error.lineno}, column {error.colno}"
        raise InvalidArgument(f"{place}: not JSON at {at}: {error.msg}") from error


def _document(value: Any, path: Path) -> dict[str, Any]:
    if isinstance(value, list):
        return {"examples": value}
    if not isinstance(value, dict) or not isinstance(cast("dict[str, Any]", value).get("examples"), list):
        raise InvalidArgument(f'{path} must hold a list of examples, or an object with the list "examples"')
    return cast("dict[str, Any]", value)


def _example(item: Any, place: str) -> Example:
    if not isinstance(item, Mapping):
        raise InvalidArgument(f"{place}: an example is an object, got {type(item).__name__}")
    fields = cast("Mapping[str, Any]", item)
    missing = [key for key in NEEDED if key not in fields]
    unknown = [key for key in fields if key not in (*NEEDED, *OPTIONAL)]
    if missing or unknown:
        found = " and ".join(
            f"{verb} {keys}" for verb, keys in (("lacks", missing), ("has the unknown", unknown)) if keys
        )
        raise InvalidArgument(f"{place} {found}; it needs {', '.join(NEEDED)} and may have {', '.join(OPTIONAL)}")
    for key in ("clean", "corrupt"):
        if not isinstance(fields[key], str):
            raise InvalidArgument(f"{place}: {key} must be text, got {fields[key]!r}")
    try:
        return Example(
            fields["clean"],
            fields["corrupt"],
            _texts(fields["correct"], "correct"),
            _texts(fields["wrong"], "wrong"),
            _roles(fields.get("roles", {}), fields["clean"]),
            _labels(fields.get("labels", {})),
        )
    except InvalidArgument as error:
        raise InvalidArgument(f"{place}: {error.message}") from error


def _texts(value: Any, what: str) -> tuple[str, ...]:
    texts = cast("list[Any]", [value] if isinstance(value, str) else value)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):  # pyright: ignore[reportUnnecessaryIsInstance] - JSON can hold anything
        raise InvalidArgument(f"{what} must be a text or a list of texts, got {value!r}")
    return tuple(texts)


def _labels(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in cast("dict[str, Any]", value).values()):
        raise InvalidArgument(f"labels must be an object of texts, got {value!r}")
    return cast("dict[str, str]", value)


def _roles(value: Any, clean: str) -> dict[str, tuple[int, int]]:
    if not isinstance(value, dict):
        raise InvalidArgument(f"roles must be an object, got {value!r}")
    return {role: _span(where, role, clean) for role, where in cast("dict[str, Any]", value).items()}


def _span(where: Any, role: str, clean: str) -> tuple[int, int]:
    if isinstance(where, str):
        if not where or clean.count(where) != 1:
            raise InvalidArgument(
                f"role {role!r}: {where!r} occurs {clean.count(where) if where else 0} times in the clean prompt; "
                "name a text that occurs once, or its [start, stop) characters"
            )
        return clean.index(where), clean.index(where) + len(where)
    span = cast("list[Any]", where)
    if not isinstance(where, list) or len(span) != 2 or any(type(i) is not int for i in span):
        raise InvalidArgument(f"role {role!r} must be a text or two numbers [start, stop), got {where!r}")
    return span[0], span[1]
