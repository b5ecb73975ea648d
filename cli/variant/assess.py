"""`probewire variant assess`: a risk report."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..connection import add_connection_arguments, connected
from .reporting import NOT_MEASURED, add_report_arguments, fetched, kept, not_measured

__all__ = ["add_arguments", "run"]

LEVELS = ("low", "medium", "high", "critical")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire variant assess` takes."""
    add_report_arguments(parser)
    parser.add_argument(
        "--max-risk", choices=LEVELS, default="medium", help="the highest level that passes (%(default)s)"
    )
    parser.add_argument(
        "--circuit", type=Path, action="append", default=[], metavar="FILE", help="that shall hold; repeatable"
    )
    parser.add_argument("--no-dry-run", action="store_true", help="predict alone: the variant is loaded for nobody")
    add_connection_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Assess, write, say; gives the exit status."""
    from ...analysis.circuits import Circuit
    from ...analysis.reports.risk import assess

    try:
        with connected(args) as client:
            variant, folder = fetched(client, args.variant, args.model)
            circuits = [Circuit.load(path) for path in args.circuit]
            report = assess(
                client, variant, circuits=circuits, dry_run=not args.no_dry_run, seed=args.seed, model=args.model
            )
    except NOT_MEASURED as error:
        return not_measured(error, args.variant)
    files = kept(report, args, folder)
    print(report)
    for row in report.rows:
        print(f"  {row.level:8} {row.part} of {row.of}: {row.value:.4g} {row.unit}")
    passed = LEVELS.index(report.level) <= LEVELS.index(args.max_risk)
    told = {"variant": variant.manifest.name or args.variant, "hash": variant.hash, "level": report.level}
    print(json.dumps({**told, "verdict": "pass" if passed else "fail", "files": files}, ensure_ascii=False))
    return 0 if passed else 1
