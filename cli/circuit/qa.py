"""`probewire circuit qa`: a circuit's checks, as text, JSON and a page, with an exit code for scripts."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ...protos.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, NotFound, Unavailable, Unsupported
from ..connection import add_connection_arguments, connected

__all__ = ["add_arguments", "run"]

NOT_MEASURED = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire circuit qa` takes."""
    parser.epilog = (
        "Exit: 0 the level is reached, 1 a check of it fails, 2 wrong use, 3 inconclusive, 4 could not be measured. The last line "
        "of the output is one JSON object."
    )
    parser.add_argument("circuit", metavar="FILE", help="a circuit's JSON, or, with --library, its name there")
    parser.add_argument(
        "--library", type=Path, metavar="FOLDER", help="take it from there, and keep the result on its card"
    )
    parser.add_argument(
        "--task",
        metavar="NAME|FILE",
        help="ioi, greater_than, agreement, capitals, or a file of examples (the circuit's own task)",
    )
    parser.add_argument(
        "--found-on",
        action="append",
        default=[],
        metavar="LABEL=VALUE",
        help="labels of the examples that it was found on (template=0), so that others are known; repeatable",
    )
    parser.add_argument("--level", type=int, default=2, choices=(1, 2, 3, 4), help="that it shall reach (%(default)s)")
    parser.add_argument("--n", type=int, default=16, metavar="N", help="held-out prompts (%(default)s)")
    parser.add_argument("--random", type=int, default=20, metavar="N", help="random circuits beside it (%(default)s)")
    parser.add_argument(
        "--sets", type=int, default=3, metavar="N", help="sets of prompts to find it again on (%(default)s)"
    )
    parser.add_argument("--ablation", choices=("patch", "mean", "zero"), help="of all outside it (the file's)")
    parser.add_argument(
        "--allow-inconclusive", action="store_true", help="exit 0 where nothing fails and too little is known"
    )
    parser.add_argument("--who", default="", metavar="NAME", help="who checks; another's check is what level 4 takes")
    parser.add_argument("--out", type=Path, metavar="JSON", help="the report")
    parser.add_argument("--html", type=Path, metavar="HTML", help="its page; one file that needs no network")
    parser.add_argument("--no-texts", action="store_true", help="leave the prompts' tokens out of the page")
    parser.add_argument("--model", default="", help="which of the served models")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and random circuits (%(default)s)")
    add_connection_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Check, write, say; gives the exit status."""
    from ...analysis.circuits import Circuit
    from ...analysis.library import CircuitLibrary
    from ...analysis.reports.circuit import circuit_qa, qa_page

    labels = _labels(args.found_on)
    library = None if args.library is None else CircuitLibrary(args.library)
    if library is None and not Path(args.circuit).is_file():
        raise NotFound(
            f"there is no file {args.circuit}; name a circuit's JSON, or the library that has it: --library FOLDER"
        )
    circuit = Circuit.load(args.circuit) if library is None else library.get(args.circuit)
    try:
        with connected(args) as client:
            report = circuit_qa(
                client,
                circuit,
                task=_task(args.task),
                found_on=labels,
                n=args.n,
                n_random=args.random,
                seeds=args.sets,
                ablation=args.ablation,
                who=args.who,
                seed=args.seed,
                model=args.model,
            )
    except (Unavailable, DeadlineExceeded, Unsupported, FailedPrecondition) as error:
        print(f"probewire: could not be measured: {error.message}", file=sys.stderr)
        print(json.dumps({"circuit": circuit.id, "verdict": "not measured", "why": error.message}))
        return NOT_MEASURED
    if args.out is not None:
        report.save(args.out)
    if args.html is not None:
        qa_page(report, args.html, circuit=circuit, texts=not args.no_texts)
    if library is not None:
        library.record(args.circuit, report.entry(args.who), circuit.card.version)
    print(report)
    told: dict[str, Any] = {
        "circuit": circuit.id,
        "name": circuit.card.name,
        "level": report.level,
        "asked": args.level,
        "verdict": report.reaches(args.level),
        "safety": report.verdict("safety"),
        "sha256": report.sha256,
    }
    print(json.dumps(told, ensure_ascii=False))
    return report.exit_code(args.level, allow_inconclusive=args.allow_inconclusive)


def _labels(given: list[str]) -> dict[str, str]:
    parts = [one.partition("=") for one in given]
    if wrong := [one for one, (name, sign, value) in zip(given, parts, strict=True) if not (name and sign and value)]:
        raise InvalidArgument(f"--found-on {wrong[0]!r}: write LABEL=VALUE, such as template=0")
    return {name: value for name, _, value in parts}


def _task(name: str | None) -> Any:
    from ...analysis.reports.circuit import TASKS
    from ...analysis.tasks import load_task

    if name is None:
        return None
    return TASKS[name]() if name in TASKS else load_task(name)
