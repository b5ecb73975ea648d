"""Formats that are pickles: never opened, since opening one runs what it says."""

from __future__ import annotations

from pathlib import Path

from ....protos.errors import InvalidArgument

__all__ = ["PICKLED", "refused"]

PICKLED = (".pt", ".pth", ".bin", ".pkl", ".pickle")


def refused(path: Path) -> InvalidArgument:
    """The error that says why, and the two lines that turn such a file into JSON where it may be trusted."""
    if path.suffix in (".pkl", ".pickle"):
        lines = (
            f"import json, pickle; edges = pickle.load(open({str(path)!r}, 'rb'))",
            f"json.dump([[list(map(str, names)), float(effect)] for names, effect in edges], open({path.stem + '.json'!r}, 'w'))",
        )
        if path.stem == "edges" or "acdc" in path.stem.lower():
            lines = (
                lines[0],
                f"json.dump([[[a, list(i), b, list(j)], float(e)] for (a, i, b, j), e in edges], open({path.stem + '.json'!r}, 'w'))",
            )
    else:
        lines = (
            "from eap.graph import Graph",
            f"Graph.from_pt({str(path)!r}).to_json({path.stem + '.json'!r})",
        )
    return InvalidArgument(
        f"{path.name} is a pickle, and opening one runs whatever it holds, so it is not read. Where you trust it, two lines turn it "
        f"into JSON that is:\n    {lines[0]}\n    {lines[1]}"
    )
