"""`probewire restore`: what `probewire backup` copied, as the state folder of a server that is to start."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..server.state.backup import copy_state
from ..server.state.database import default_state_folder
from .backup import tell

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire restore` takes."""
    parser.epilog = "Stop the server and move its old state folder away first. Keys are as they were: revoke again whoever was revoked since."
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a folder that `probewire backup` filled")
    parser.add_argument(
        "--state",
        type=Path,
        default=default_state_folder(),
        metavar="DIR",
        help="a folder not there yet, or empty (%(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Copy, and say what. The exit status is that of `probewire backup`."""
    status = tell("restored", copy_state(args.source, args.state), args.state)
    print("keys are as they were at the backup: revoke again whoever was revoked since", file=sys.stderr)
    return status
