"""`probewire chat`: a conversation in the terminal that can be steered, and whose activations can be watched."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from ..clients.client import DEFAULT_URL, Client
from ..protos.errors import Cancelled, InvalidArgument, ProbewireError
from .chat_commands import HELP, obey
from .chat_reply import Reply
from .chat_session import Session
from .chat_shows import parse_show
from .chat_steering import parse_steering

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire chat` takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"inside:\n{HELP}"
    parser.add_argument("--url", default=DEFAULT_URL, help="grpc://host:50051 or http://host:8000 (%(default)s)")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="a file that holds your key")
    parser.add_argument("--model", default="", help="needed only where several are loaded")
    parser.add_argument("--system", default="", metavar="TEXT", help="the system message")
    parser.add_argument(
        "--steer",
        action="append",
        default=[],
        metavar="SITE=FILE[:ALPHA]",
        help="add ALPHA (default 1) times a vector: .npy, or .safetensors (FILE#NAME where it holds several)",
    )
    parser.add_argument(
        "--show",
        action="append",
        default=[],
        metavar="SITE[:WHAT]",
        help="watch a site beside each token; WHAT is norm (default), unit=N or top_k=K, then head=H at head sites",
    )
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="of one reply (%(default)s)")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0: greedy (default)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P")
    parser.add_argument("--seed", type=int, default=None, metavar="N", help="default: the server draws one a reply")


def run(args: argparse.Namespace) -> int:
    """Talk until the end of input or /quit."""
    console = Console(highlight=False, emoji=False)
    key = args.api_key_file.read_text().strip() if args.api_key_file else None
    with Client(args.url, api_key=key) as client:
        session = _session(client, args)
        _greet(console, session)
        for line in _lines(console):
            try:
                if not line.startswith("/"):
                    _answer(console, session, line)
                elif not obey(console, session, line):
                    break
            except ProbewireError as error:
                console.print(f"[red]{escape(error.message)}[/red]", soft_wrap=True)
    return 0


def _session(client: Client, args: argparse.Namespace) -> Session:
    info = client.describe(args.model)
    session = Session(client, info, args.system)
    session.sampling = {
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "seed": args.seed,
    }
    if args.system and not info.chat_template:
        raise InvalidArgument(f"{info.id} has no chat template, so --system has no place in its prompt; leave it out")
    session.steerings = [parse_steering(text) for text in args.steer]
    session.shows = [parse_show(text, info) for text in args.show]
    return session


def _greet(console: Console, session: Session) -> None:
    info = session.info
    console.print(f"[bold]{escape(info.id)}[/bold]  {info.backend} on {info.device}, {info.dtype}   /help for commands")
    if not info.chat_template:
        console.print("[dim]No chat template: the model continues your text as it stands.[/dim]")
    for line in session.settings():
        console.print(f"[dim]{escape(line)}[/dim]")


def _lines(console: Console) -> Iterator[str]:
    """What the user types, or what is piped in (then echoed, so that a transcript can be read)."""
    typed = sys.stdin.isatty()
    if typed:
        _enable_editing()
    while True:
        console.print("[bold cyan]you ›[/bold cyan] ", end="")
        try:
            line = input().strip()
        except EOFError:
            console.print()
            return
        except KeyboardInterrupt:
            console.print("\n[dim](/quit or Ctrl-D to leave)[/dim]")
            continue
        if not typed:
            console.print(escape(line))
        if line:
            yield line


def _enable_editing() -> None:
    """Arrow keys and history, where Python has them."""
    try:
        import readline  # noqa: F401  # pyright: ignore[reportUnusedImport] - importing it turns them on
    except ImportError:
        return


def _answer(console: Console, session: Session, text: str) -> None:
    """One turn. Ctrl-C ends the reply, not the chat."""
    session.say(text)
    reply = Reply(console, session)
    try:
        with closing(session.start()) as stream:
            reply.follow(stream)
    except KeyboardInterrupt:
        reply.interrupted()
    except ProbewireError as error:
        reply.broken()
        if not reply.text:
            session.take_back()
        if not isinstance(error, Cancelled):
            raise
    finally:
        if reply.text:
            session.hear(reply.text)
