"""`probewire users`: who may use the box. Works on the state folder itself, whether or not a server runs over it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ..protos.errors import FailedPrecondition, InvalidArgument
from ..server.auth.users import ROLES, User, UserLimits, Users
from ..server.state.database import DATABASE, State, default_state_folder

__all__ = ["add_arguments", "run"]

WIDE = 160
"""Columns where no terminal says how many there are, so that a table in a file is never folded."""

_DEFAULTS = UserLimits()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire users` takes."""
    parser.epilog = "A running server sees every change at once."
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    add = commands.add_parser("add", help="make a user and print the key, this once", allow_abbrev=False)
    _add_limits(add)
    listing = commands.add_parser("list", help="everybody, with roles and limits; never a key", allow_abbrev=False)
    change = commands.add_parser(
        "set", help="change a user's role or limits; what is not named stays", allow_abbrev=False
    )
    _add_limits(change, keep=True)
    revoke = commands.add_parser("revoke", help="end a user's key", allow_abbrev=False)
    rotate = commands.add_parser("rotate", help="print a new key, this once, and end the old one", allow_abbrev=False)
    for command in (add, change, revoke, rotate):
        command.add_argument("name", metavar="NAME")
    for command in (add, listing, change, revoke, rotate):
        command.add_argument(
            "--state", type=Path, default=default_state_folder(), metavar="DIR", help="of the server (%(default)s)"
        )


def _add_limits(parser: argparse.ArgumentParser, *, keep: bool = False) -> None:
    """Role and limits; with `keep` nothing is the default, so that what is not named stays."""

    def default(value: Any) -> Any:
        return None if keep else value

    shown = "" if keep else " (%(default)s)"
    parser.add_argument("--role", choices=ROLES, default=default("researcher"), help=shown.strip() or None)
    limits = parser.add_argument_group("limits (0: none)")
    for option, value, what in (
        ("--requests", _DEFAULTS.requests, "under way and queued"),
        ("--tokens-per-minute", _DEFAULTS.tokens_per_minute, "prompt and new tokens"),
        ("--store-mib", _DEFAULTS.store_bytes >> 20, "of stored captures"),
        ("--sessions", _DEFAULTS.sessions, "live sessions"),
    ):
        limits.add_argument(option, type=int, default=default(value), metavar="N", help=what + shown)


def run(args: argparse.Namespace) -> int:
    """Do what was asked. Keys go to standard output, alone on their line; all else goes to standard error."""
    with _opened(args.state, make=args.action == "add") as users:
        actions = {"add": _add, "list": _list, "set": _set, "revoke": _revoke, "rotate": _rotate}
        return actions[args.action](users, args)


@contextmanager
def _opened(folder: Path, *, make: bool) -> Generator[Users]:
    """The users of a state folder. A mistyped folder is not made, unless there is a user to put into it."""
    if not make and not (folder / DATABASE).exists():
        raise FailedPrecondition(
            f"there are no users in {folder}: no server has kept its state there; name its folder with --state, "
            "or make the first user with `probewire users add NAME`"
        )
    state = State(folder)
    try:
        yield Users(state)
    finally:
        state.close()


def _add(users: Users, args: argparse.Namespace) -> int:
    limits = UserLimits(args.requests, args.tokens_per_minute, args.store_mib << 20, args.sessions)
    first = not users.any
    print(users.add(args.name, args.role, limits), flush=True)
    _say(f"{args.name} is a user, {args.role}. The key above is shown this once: only its hash is kept.")
    if first:
        _say("This is the first user: from now on every request to the server needs a key.")
    _say('They use it as Client(url, api_key="pw_…"), or as PROBEWIRE_API_KEY with the probewire command.')
    return 0


def _set(users: Users, args: argparse.Namespace) -> int:
    store = None if args.store_mib is None else args.store_mib << 20
    asked = (args.requests, args.tokens_per_minute, store, args.sessions)
    limits = {name: value for name, value in zip(UserLimits.__slots__, asked, strict=True) if value is not None}
    if not limits and args.role is None:
        raise InvalidArgument("nothing to change; name a role or a limit, such as --role admin or --requests 16")
    changed = users.change(args.name, role=args.role, limits=limits)
    _say(f"{changed.name} is a {changed.role} with {changed.limits}; the key is the same.")
    return 0


def _rotate(users: Users, args: argparse.Namespace) -> int:
    print(users.rotate(args.name), flush=True)
    _say(f"{args.name} has a new key, shown this once. The old one has ended.")
    return 0


def _revoke(users: Users, args: argparse.Namespace) -> int:
    users.revoke(args.name)
    _say(f"{args.name}'s key has ended. `probewire users rotate {args.name}` lets them in again, with a new one.")
    return 0


def _list(users: Users, args: argparse.Namespace) -> int:
    found = users.list()
    if not found:
        _say("no users; whoever reaches the server is let in. `probewire users add NAME` makes the first")
        return 0
    console = Console(highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDE
    console.print(_table(found))
    return 0


def _table(users: list[User]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("name", "role", "key id", "since", "state"):
        table.add_column(name, overflow="fold")
    for name in ("requests", "tokens/min", "store MiB", "sessions"):
        table.add_column(name, justify="right")
    for user in users:
        state = "active" if user.revoked_s is None else f"revoked {_date(user.revoked_s)}"
        limits = user.limits
        numbers = (limits.requests, limits.tokens_per_minute, limits.store_bytes >> 20, limits.sessions)
        table.add_row(
            user.name,
            user.role,
            f"pw_{user.key_id}…",
            _date(user.created_s),
            state,
            *(f"{number:,}" if number else "no limit" for number in numbers),
            style="dim" if user.revoked_s is not None else "",
        )
    return table


def _date(time_s: float) -> str:
    return datetime.fromtimestamp(time_s).astimezone().strftime("%Y-%m-%d %H:%M")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
