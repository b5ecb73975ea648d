"""`probewire variant validate`: a validation report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ...protos.errors import NotFound
from ..connection import add_connection_arguments, connected
from .reporting import NOT_MEASURED, add_report_arguments, fetched, kept, not_measured, verdict_exit

if TYPE_CHECKING:
    from ...analysis.circuits import Circuit

__all__ = ["add_arguments", "run"]

SUITES = ("facts", "tasks", "safety", "general", "interpretability")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire variant validate` takes."""
    add_report_arguments(parser)
    parser.add_argument(
        "--suites", nargs="+", choices=SUITES, default=SUITES, metavar="NAME", help="of: " + ", ".join(SUITES)
    )
    parser.add_argument("--items", type=int, default=200, metavar="N", help="examples of each task (%(default)s)")
    parser.add_argument(
        "--lm-eval", nargs="+", default=[], metavar="TASK", help="tasks of lm-evaluation-harness, ours or its own"
    )
    parser.add_argument(
        "--circuits",
        nargs="+",
        default=[],
        metavar="FILE|FOLDER",
        help="circuits' files, or a library: do they still hold?",
    )
    parser.add_argument("--saes", nargs="+", default=[], metavar="NAME", help="loaded SAEs: do they still explain?")
    parser.add_argument(
        "--allow-inconclusive", action="store_true", help="exit 0 where nothing fails and too little is known"
    )
    add_connection_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Validate, write, say; gives the exit status."""
    from ...analysis.reports.validation import validate_variant

    circuits = [one for path in args.circuits for one in _circuits(Path(path).expanduser())]
    try:
        with connected(args) as client:
            variant, folder = fetched(client, args.variant, args.model)
            report = validate_variant(
                client,
                variant,
                suites=tuple(args.suites),
                lm_eval_tasks=tuple(args.lm_eval),
                circuits=circuits,
                saes=tuple(args.saes),
                n=args.items,
                seed=args.seed,
                model=args.model,
            )
    except NOT_MEASURED as error:
        return not_measured(error, args.variant)
    files = kept(report, args, folder)
    print(report)
    for check in report.checks:
        print(f"  {check}")
    told = {"variant": variant.manifest.name or args.variant, "hash": variant.hash, "verdict": report.verdict}
    print(json.dumps({**told, "suites": report.suites, "files": files}, ensure_ascii=False))
    return verdict_exit(report.verdict, allow_inconclusive=args.allow_inconclusive)


def _circuits(path: Path) -> list[Circuit]:
    """Of a file, or all of a library. Raises NotFound for what is neither, FailedPrecondition for a file that is no circuit."""
    from ...analysis.circuits import Circuit
    from ...analysis.library import CircuitLibrary

    if not path.exists():
        raise NotFound(f"there is no circuit or library {path}")
    return list(CircuitLibrary(path).circuits()) if path.is_dir() else [Circuit.load(path)]
