"""`probewire circuit`."""

from .command import add_arguments, run

__all__ = ["add_arguments", "run"]
