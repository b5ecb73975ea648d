"""Peers live in environments of their own below build/bench, made on first use: nothing of theirs reaches ours."""

from __future__ import annotations

import subprocess
import sys

from child import BUILD

__all__ = ["environment"]

TORCH = "torch==2.13.0"


def environment(name: str, *packages: str) -> str:
    """The Python of an environment that has the packages beside torch."""
    folder = BUILD / name
    python, made = folder / "bin" / "python", folder / ".made"
    if not made.exists():
        print(f"    installing {', '.join(packages)} into {folder}: some minutes", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        for group in ((TORCH,), packages):
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", *group], check=True)
        made.touch()
    return str(python)
