"""`probewire bench`: run the checkout's benchmarks."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from ..protos.errors import FailedPrecondition

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Everything goes on to benchmarks/run.py."""
    parser.prefix_chars = "\0"  # every argument, options and --help too, is for run.py to read
    parser.add_argument("arguments", nargs="*", help="passed on to benchmarks/run.py")


def run(args: argparse.Namespace) -> int:
    """Run them; gives their exit status."""
    script = Path(__file__).resolve().parents[1] / "benchmarks" / "run.py"
    if not script.is_file():
        raise FailedPrecondition(
            f"there is no {script}: benchmarks come with a checkout of the repository, not with pip"
        )
    return subprocess.run([sys.executable, str(script), *args.arguments], check=False).returncode
