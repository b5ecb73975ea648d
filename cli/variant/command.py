"""`probewire variant`: each action is a row of one table."""

from __future__ import annotations

import argparse

from . import assess, folders, served, validate
from .action import Action

__all__ = ["ACTIONS", "add_arguments", "run"]

ACTIONS = (
    *served.ACTIONS,
    *folders.ACTIONS,
    Action(
        "assess",
        "say what a variant may break, before it is used: a level and a page",
        assess.add_arguments,
        assess.run,
    ),
    Action("validate", "say what a variant does and broke: verdicts and a page", validate.add_arguments, validate.run),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire variant` takes."""
    parser.epilog = "`probewire variant ACTION --help` says more."
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for one in ACTIONS:
        action = actions.add_parser(
            one.name, help=one.summary, description=f"{one.summary[0].upper()}{one.summary[1:]}.", allow_abbrev=False
        )
        one.add_arguments(action)
        action.set_defaults(run_action=one.run)


def run(args: argparse.Namespace) -> int:
    """Run the chosen one; gives the exit status."""
    return args.run_action(args)
