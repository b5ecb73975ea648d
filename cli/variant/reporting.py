"""What `assess` and `validate` share: which variant, what could not be measured, the last line of output."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...clients import Client, Variant
from ...protos.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    ProbewireError,
    Unavailable,
    Unsupported,
)

__all__ = ["EXITS", "NOT_MEASURED", "add_report_arguments", "fetched", "kept", "not_measured", "verdict_exit"]

EXITS = "Exit: 0 pass, 1 fail, 2 wrong use, 3 inconclusive, 4 could not be measured. The last line of the output is one JSON object."
_EXIT = {"pass": 0, "fail": 1, "inconclusive": 3}
NOT_MEASURED = (Unavailable, DeadlineExceeded, Unsupported, FailedPrecondition)
"""No server, a library or a set that is missing."""


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what both take."""
    parser.epilog = EXITS
    parser.add_argument("variant", metavar="FOLDER|NAME", help="a variant's folder, or the name of one that is loaded")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="the report's files go there (default: the variant's folder)"
    )
    parser.add_argument("--no-texts", action="store_true", help="leave prompts and answers out of them")
    parser.add_argument("--model", default="", help="which of the served models")
    parser.add_argument("--seed", type=int, default=0, help="of the resampling (%(default)s)")


def fetched(client: Client, named: str, model: str) -> tuple[Variant, Path | None]:
    """The variant and, where it is one, its folder. Raises NotFound for what is neither a folder nor loaded."""
    folder = Path(named).expanduser()
    if folder.is_dir():
        return Variant.load(folder), folder
    if "/" in named or named.startswith((".", "~")):
        raise NotFound(f"there is no folder {named}")
    return client.fetch_variant(named, model=model), None


def kept(report: Any, args: argparse.Namespace, folder: Path | None) -> dict[str, str]:
    """Write the report's files, and into a variant's own folder their hashes; gives the files' paths by name."""
    target = args.out or folder
    if target is None:
        return {}
    report.save(target, texts=not args.no_texts)
    if folder is not None and target == folder:
        _noted(folder)
    return {path.name: str(path) for path in sorted(Path(target).glob("*")) if path.stem in ("risk", "validation")}


def not_measured(error: ProbewireError, variant: str) -> int:
    """Say so in both ways."""
    print(f"probewire: could not be measured: {error.message}", file=sys.stderr)
    print(json.dumps({"variant": variant, "verdict": "not measured", "why": error.message}, ensure_ascii=False))
    return 4


def verdict_exit(verdict: str, *, allow_inconclusive: bool) -> int:
    """The exit status of a verdict."""
    return 0 if verdict == "inconclusive" and allow_inconclusive else _EXIT[verdict]


def _noted(folder: Path) -> None:
    """The reports' hashes, in the manifest of the variant's folder; its own hash stays."""
    from ...analysis.reports.report_files import hashes
    from ...protos.variants.files import with_card

    path = folder / "variant.json"
    if not path.is_file():
        return
    found: Mapping[str, str] = hashes(folder)
    variant = Variant.load(folder)
    noted = replace(variant, manifest=replace(variant.manifest, reports={**variant.manifest.reports, **found}))
    told = with_card(noted.files(), noted.deltas, noted.plan, noted.manifest, noted.hash)
    for name in ("variant.json", "README.md"):
        (folder / name).write_bytes(told[name])
