"""`probewire variant`: variants on a server, and as folders."""

from .command import add_arguments, run

__all__ = ["add_arguments", "run"]
