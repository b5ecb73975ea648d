"""Units of a circuit as a table: site, position, head, neuron, score. No more of the circuit than that."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from ....protos.errors import InvalidArgument
from ...circuits import AnySpace, Circuit, Origin, Unit, node_space
from .shape import Shape

__all__ = ["csv_circuit", "csv_text"]

COLUMNS = ("site", "position", "head", "unit", "score")


def csv_text(circuit: Circuit) -> str:
    """A table with a line a unit, best first."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(COLUMNS)
    for unit, score in zip(circuit.units, circuit.scores, strict=True):
        table.writerow([unit.site, *(_text(value) for value in (unit.position, unit.head, unit.unit)), repr(score)])
    return out.getvalue()


def csv_circuit(
    text: str,
    *,
    space: AnySpace | None = None,
    shape: Shape | None = None,
    n_tokens: int | None = None,
    origin: Origin | None = None,
) -> Circuit:
    """The circuit of such a table; only `site` is needed of its columns.

    A table does not say what its units were chosen from: give the space, or the model's shape (then it is all units of the
    sites that occur). Raises InvalidArgument with the line that is wrong.
    """
    rows = list(csv.DictReader(io.StringIO(text)))
    names = set(rows[0]) if rows else set[str]()
    if not rows or "site" not in names or names - set(COLUMNS):
        raise InvalidArgument(f"a table of units has the columns {', '.join(COLUMNS)}, got {sorted(map(str, names))}")
    units: list[Unit] = []
    scores: list[float] = []
    for number, row in enumerate(rows, 2):
        try:
            units.append(Unit(row["site"], _number(row, "position"), _number(row, "unit"), _number(row, "head")))
            scores.append(float(row.get("score") or 0.0))
        except (ValueError, InvalidArgument) as error:
            raise InvalidArgument(f"line {number}: {error}") from error
    if space is None:
        if shape is None:
            raise InvalidArgument(
                "a table does not say what its units were chosen from; give space=, or info= of the model"
            )
        widths = {"z": shape.n_heads, "mlp_act": shape.d_mlp, "mlp_out": shape.d_model, "attn_out": shape.d_model}
        positions = [unit.position for unit in units if unit.position is not None]
        space = node_space(units, widths, n_tokens or (max(positions) + 1 if positions else None))
    return Circuit(space, tuple(units), tuple(scores), origin or Origin())


def _text(value: int | None) -> str:
    return "" if value is None else str(value)


def _number(row: Mapping[str, Any], name: str) -> int | None:
    value = row.get(name)
    return int(value) if value else None
