"""The `probewire` command. Each subcommand is a module with `add_arguments(parser)` and `run(args) -> int`."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module

from ..protos.errors import ProbewireError
from .version import VERSION

__all__ = ["main"]

COMMANDS = {
    "serve": "serve one or more models over gRPC and REST",
    "pull": "fetch a model into the cache",
    "convert": "write a quantised or pickled checkpoint, or an adapter and its base, as a plain folder",
    "chat": "talk to a served model, steer it, and watch its activations",
    "users": "say who may use a server: make users, list them, end or renew their keys",
    "backup": "copy what a server keeps (users, sessions, captures, SAEs, variants), while it runs or not",
    "restore": "put such a copy back, into an empty state folder",
    "sae": "collect activations, train sparse autoencoders on them, and look at their latents",
    "tune": "fine-tune a model on this machine: a variant comes of it",
    "circuit": "check circuits against a model, and keep them in a library",
    "variant": "load, look at, compose, merge and convert variants: changes of a model as values",
    "mcp": "offer a served model to agents, over the Model Context Protocol",
    "top": "see who is running what on a server, live",
    "bench": "measure this machine against plain inference and against peers (needs a checkout)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; gives the exit status. Errors of ours are one line on standard error and status 2."""
    argv = sys.argv[1:] if argv is None else argv
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's own log only repeats, less clearly, what our errors say
    parser = argparse.ArgumentParser(
        prog="probewire",
        allow_abbrev=False,  # a slip of the finger is no other option
        description="An inference server that reads and edits what happens inside language models.",
    )
    parser.add_argument("--version", action="version", version=f"probewire {VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
        )
        if name in argv[:1]:  # only the chosen one is imported
            module = import_module(f".{name}", __package__)
            module.add_arguments(command)
            command.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warned
            return args.run(args)
    except ProbewireError as error:
        print(f"probewire: {error.message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _warned(message: Warning | str, *_: object) -> None:
    """A warning as our errors look: a line, and no place in the source."""
    print(f"probewire: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
