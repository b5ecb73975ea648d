"""Figures of model surgery, a piece each: `python benchmarks/surgery.py facts`. Each lives in surgery_<piece>.py."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path


def main() -> None:
    """Run one piece; what stands behind its name goes to it."""
    pieces = sorted(path.stem.removeprefix("surgery_") for path in Path(__file__).parent.glob("surgery_*.py"))
    if len(sys.argv) < 2 or sys.argv[1] not in pieces:
        sys.exit(f"usage: python benchmarks/surgery.py {{{','.join(pieces)}}} [options]")
    piece = sys.argv.pop(1)
    importlib.import_module(f"surgery_{piece}").main()


if __name__ == "__main__":
    main()
