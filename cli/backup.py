"""`probewire backup`: a whole copy of what a server keeps. `cli/restore.py` puts it back."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..server.state.backup import Copied, copy_state
from ..server.state.database import default_state_folder

__all__ = ["add_arguments", "run", "tell"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire backup` takes."""
    parser.epilog = (
        "The copy is of one moment; the server need not stop. Status 1: something was damaged or lost before."
    )
    parser.add_argument("dest", type=Path, metavar="DEST", help="a folder that is not there yet, or empty")
    parser.add_argument(
        "--state", type=Path, default=default_state_folder(), metavar="DIR", help="of the server (%(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Copy, and say what. The exit status: 0, or 1 when something was damaged or lost before."""
    return tell("backed up", copy_state(args.state, args.dest), args.dest)


def tell(done: str, copied: Copied, where: Path) -> int:
    """One line of what was copied, and one for each trouble; gives the exit status."""
    counts = [
        f"{n:,} {word}" for n, word in ((copied.users, "users"), (copied.sessions, "sessions"),
                                        (copied.captures, "captures"), (copied.saes, "SAEs"), (copied.variants, "variants"))
    ]  # fmt: skip
    for trouble in copied.troubles:
        print(f"probewire: {trouble}", file=sys.stderr)
    print(f"{done} {', '.join(counts)} ({copied.n_bytes / (1 << 20):,.1f} MiB) to {where}")
    return 1 if copied.troubles else 0
