"""What tools answer: numbers rounded, arrays told by what matters of them, and nothing longer than an agent can read."""

from __future__ import annotations

import json
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAX_BYTES", "bounded", "number", "rows_told"]

MAX_BYTES = 16 << 10
"""Of an answer as JSON."""
MAX_ROWS = 16
MAX_UNITS = 8


def number(value: Any) -> float | None:
    """With six significant digits; None for what JSON has no number for."""
    found = float(value)
    return float(f"{found:.6g}") if np.isfinite(found) else None


def rows_told(values: NDArray[Any], positions: tuple[int, ...], tokens: tuple[str, ...]) -> dict[str, Any]:
    """A capture's last rows: norm, and the units that are largest by absolute value. values [row, …]."""
    flat = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
    first = max(0, len(flat) - MAX_ROWS)
    rows: list[dict[str, Any]] = []
    for index in range(first, len(flat)):
        row, place = flat[index], positions[index] if index < len(positions) else None
        top = np.argsort(-np.abs(row), kind="stable")[:MAX_UNITS]
        told: dict[str, Any] = {"norm": number(np.linalg.norm(row)), "top": [[int(i), number(row[i])] for i in top]}
        if place is not None:
            told = {"position": place, "token": tokens[place] if place < len(tokens) else "", **told}
        rows.append(told)
    return {"shape": list(values.shape), "rows": rows, "rows_before": first}


def bounded(answer: dict[str, Any]) -> dict[str, Any]:
    """The answer, its longest lists cut from the end until it fits; `truncated` says which and how far."""
    cut: dict[str, int] = {}
    answer = json.loads(json.dumps(answer))
    while len(json.dumps({**answer, "truncated": cut})) > MAX_BYTES:
        path, longest = max(_parts(answer, ""), key=lambda part: len(json.dumps(part[1])), default=("", None))
        if longest is None:
            return {"error": f"the answer is above {MAX_BYTES} bytes and cannot be cut; ask for less"}
        cut.setdefault(path, len(longest))
        del longest[max(1, len(longest) // 2) :]
    return {**answer, "truncated": {path: f"the first ones of {n}" for path, n in cut.items()}} if cut else answer


def _parts(value: Any, path: str) -> list[tuple[str, list[Any]]]:
    """Lists of more than one item that hold no longer ones, with where they are."""
    found: list[tuple[str, list[Any]]] = []
    if isinstance(value, dict):
        for key, item in cast("dict[str, Any]", value).items():
            found += _parts(item, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        items = cast("list[Any]", value)
        for index, item in enumerate(items):
            found += _parts(item, f"{path}[{index}]")
        if len(items) > 1:
            found.append((path, items))
    return found
