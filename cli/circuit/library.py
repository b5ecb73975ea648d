"""`probewire circuit library`: a folder of circuits from the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..connection import add_connection_arguments, connected

if TYPE_CHECKING:
    from ...analysis.library import CircuitLibrary

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire circuit library` takes."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the library; made where there is none")
    todo = parser.add_subparsers(dest="todo", metavar="WHAT", required=True)

    def action(name: str, summary: str) -> argparse.ArgumentParser:
        return todo.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
        )

    add = action("add", "keep a circuit, from our JSON or another tool's file")
    add.add_argument(
        "file", type=Path, metavar="FILE", help="our JSON, EAP-IG's, NeuroScope's, Neuronpedia's, ACDC's, or a CSV"
    )
    add.add_argument("--name", default="", help="in the library (the file's own)")
    add.add_argument("--category", default="", metavar="PATH", help="such as syntax/agreement")
    add.add_argument(
        "--from-model",
        action="store_true",
        help="ask a server for the model's hash and sizes, which other tools' files lack",
    )
    add.add_argument("--model", default="", help="which of the served models")
    add_connection_arguments(add)
    search = action("search", "find circuits by words, category, tags, unit or level")
    search.add_argument("text", nargs="*", metavar="WORD")
    search.add_argument("--category", default="", metavar="PATH")
    search.add_argument("--tag", action="append", default=[], metavar="TAG")
    search.add_argument("--task", default="", metavar="NAME")
    search.add_argument("--contains", metavar="UNIT", help='such as "z.9 head 6"')
    search.add_argument("--min-level", type=int, default=0, metavar="N", help="of checks passed")
    show = action("show", "print a circuit")
    show.add_argument("circuit", metavar="NAME", help="or its id; NAME@VERSION")
    diff = action("diff", "compare two circuits")
    diff.add_argument("a", metavar="A", help="a name, or NAME@VERSION")
    diff.add_argument("b", metavar="B")
    index = action("index", "write one page of all circuits")
    index.add_argument("--out", type=Path, required=True, metavar="HTML")
    export = action("export", "write a circuit for another tool")
    export.add_argument("circuit", metavar="NAME")
    export.add_argument("--out", type=Path, required=True, metavar="FILE")
    export.add_argument("--format", dest="kind", default="", choices=("", "probewire", "eap-ig", "neuroscope", "csv"))
    export.add_argument("--model", default="", help="which of the served models (eap-ig asks for its sizes)")
    add_connection_arguments(export)
    for name, summary in (
        ("push", "upload the library to the hub"),
        ("pull", "add the circuits of a library on the hub"),
    ):
        share = action(name, summary)
        share.add_argument("repo", metavar="OWNER/NAME")
        if name == "push":
            share.add_argument("--public", action="store_true", help="make the repository public, where it is new")
        else:
            share.add_argument("--revision", metavar="REVISION")


def run(args: argparse.Namespace) -> int:
    """Do what was asked; gives the exit status."""
    from ...analysis.library import CircuitLibrary

    _ACTIONS[args.todo](CircuitLibrary(args.folder), args)
    return 0


def _add(library: CircuitLibrary, args: argparse.Namespace) -> None:
    options: dict[str, Any] = {}
    if args.from_model:
        with connected(args) as client:
            options["info"] = client.describe(args.model)
    circuit = library.import_(args.file, name=args.name, category=args.category, **options)
    print(f"{circuit.id} {circuit.card.name} {circuit.card.version}")


def _search(library: CircuitLibrary, args: argparse.Namespace) -> None:
    hits = library.search(
        " ".join(args.text),
        category=args.category,
        tags=args.tag,
        task=args.task,
        contains=args.contains,
        min_level=args.min_level,
    )
    for hit in hits:
        circuit = hit.circuit
        told = f"{circuit.card.name} {circuit.card.version}  level {circuit.card.level}  {len(circuit)} units"
        print(f"{told}  {'; '.join(hit.reasons)}".rstrip())
    if not hits:
        print("nothing fits")


def _show(library: CircuitLibrary, args: argparse.Namespace) -> None:
    from ...analysis.library.readme import readme

    name, _, version = args.circuit.partition("@")
    print(readme([library.get(name, version or None)]))


def _diff(library: CircuitLibrary, args: argparse.Namespace) -> None:
    found = library.diff(args.a, args.b)
    print(found)
    for sign, units in (("+", found.added), ("−", found.removed)):
        for unit in units:
            print(f"{sign} {unit.name}")


def _index(library: CircuitLibrary, args: argparse.Namespace) -> None:
    library.index(args.out)
    print(args.out)


def _export(library: CircuitLibrary, args: argparse.Namespace) -> None:
    options: dict[str, Any] = {"kind": args.kind}
    if args.kind == "eap-ig":
        with connected(args) as client:
            options["info"] = client.describe(args.model)
    print(library.export(args.circuit, args.out, **options))


def _push(library: CircuitLibrary, args: argparse.Namespace) -> None:
    print(library.push(args.repo, private=not args.public))


def _pull(library: CircuitLibrary, args: argparse.Namespace) -> None:
    for circuit in library.pull(args.repo, revision=args.revision):
        print(f"{circuit.id} {circuit.card.name} {circuit.card.version}")


_ACTIONS: dict[str, Callable[[CircuitLibrary, argparse.Namespace], None]] = {
    "add": _add,
    "search": _search,
    "show": _show,
    "diff": _diff,
    "index": _index,
    "export": _export,
    "push": _push,
    "pull": _pull,
}
