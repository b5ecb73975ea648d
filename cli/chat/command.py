"""`probewire chat`: a conversation in the terminal that can be steered, and whose activations can be watched."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing

from rich.console import Console
from rich.markup import escape

from ...protos.errors import Cancelled, InvalidArgument, ProbewireError
from ..connection import add_connection_arguments, connected
from .commands import HELP, obey
from .conversation import Conversation
from .reply import Reply
from .shows import parse_show
from .steering import parse_steering
from .steering_control import Setting, SteeringControl

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire chat` takes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"inside:\n{HELP}"
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
    add_connection_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Talk until the end of input or /quit."""
    console = Console(highlight=False, emoji=False)
    with connected(args) as client:
        info = client.describe(args.model)
        with closing(SteeringControl(client, info.id)) as control:
            conversation = _conversation(Conversation(client, info, control), args)
            _greet(console, conversation)
            _converse(console, conversation)
    return 0


def _converse(console: Console, conversation: Conversation) -> None:
    for line in _lines(console):
        try:
            if not line.startswith("/"):
                _answer(console, conversation, line)
            elif not obey(console, conversation, line):
                return
        except ProbewireError as error:
            console.print(f"[red]{escape(error.message)}[/red]", soft_wrap=True)


def _conversation(conversation: Conversation, args: argparse.Namespace) -> Conversation:
    """Set up as the options say. Raises for what the model or the server refuses."""
    info = conversation.info
    conversation.system = args.system
    conversation.sampling = {
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "top_p": args.top_p,
        "seed": args.seed,
    }
    if args.system and not info.chat_template:
        raise InvalidArgument(f"{info.id} has no chat template, so --system has no place in its prompt; leave it out")
    steerings = tuple(parse_steering(text) for text in args.steer)
    conversation.control.change(Setting(steerings, tuple(parse_show(text, info) for text in args.show)))
    return conversation


def _greet(console: Console, conversation: Conversation) -> None:
    info = conversation.info
    console.print(f"[bold]{escape(info.id)}[/bold]  {info.backend} on {info.device}, {info.dtype}   /help for commands")
    if not info.chat_template:
        console.print("[dim]No chat template: the model continues your text as it stands.[/dim]")
    for line in conversation.control.setting.lines():
        console.print(f"[dim]{escape(line)}[/dim]", soft_wrap=True)


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


def _answer(console: Console, conversation: Conversation, text: str) -> None:
    """One turn. Ctrl-C ends the reply, not the chat."""
    conversation.say(text)
    reply = Reply(console, conversation)
    try:
        with closing(conversation.start()) as stream:
            reply.follow(stream)
    except KeyboardInterrupt:
        reply.interrupted()
    except ProbewireError as error:
        if not reply.text:
            conversation.take_back()
        if not isinstance(error, Cancelled):
            raise
    finally:
        if reply.text:
            conversation.hear(reply.text)
