"""What `probewire variant` can do, a value an action."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Action"]


@dataclass(frozen=True, slots=True)
class Action:
    """One of them."""

    name: str
    summary: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
