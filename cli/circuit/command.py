"""`probewire circuit`: checking a circuit, and keeping circuits in a library."""

from __future__ import annotations

import argparse
from types import ModuleType

from . import library as circuit_library, qa as circuit_qa

__all__ = ["add_arguments", "run"]

ACTIONS: dict[str, tuple[ModuleType, str]] = {
    "qa": (circuit_qa, "check a circuit against a model: levels, a page, an exit code"),
    "library": (circuit_library, "keep circuits in a folder: add, search, compare, share"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire circuit` takes."""
    parser.epilog = "Needs the extra: pip install 'probewire[analysis]'. `probewire circuit ACTION --help` says more."
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, (module, summary) in ACTIONS.items():
        action = actions.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
        )
        module.add_arguments(action)


def run(args: argparse.Namespace) -> int:
    """Do what was asked; gives the exit status."""
    module, _ = ACTIONS[args.action]
    return module.run(args)
