"""What a line that begins with a slash does in the chat."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace

from rich.console import Console
from rich.markup import escape

from ..protos.errors import InvalidArgument
from .chat_session import Session
from .chat_shows import MAX_SHOWS, parse_show
from .chat_steering import between_prompts, from_file

__all__ = ["HELP", "obey"]

HELP = """\
  /steer SITE "TOWARDS" "AWAY" [alpha=4]   steer along the difference of two prompts;
                                           10 adds as much as is there
  /steer SITE FILE [alpha=1]               … or along a vector (.npy, .safetensors)
  /alpha X                                 change the strength of all steering
  /off                                     stop steering
  /show SITE[:norm|:unit=N|:top_k=K]       watch a site beside each token (heads: :head=H)
  /show off                                stop watching
  /sites                                   what this model offers
  /reset                                   forget the conversation
  /help, /quit"""


def obey(console: Console, session: Session, line: str) -> bool:
    """Do it; False to leave. Raises InvalidArgument for what it does not understand."""
    try:
        name, *words = shlex.split(line)
    except ValueError as error:
        raise InvalidArgument(f"{line}: {error}") from None
    if name in ("/quit", "/exit"):
        return False
    if name not in _COMMANDS:
        raise InvalidArgument(f"no command {name}; there are {', '.join(_COMMANDS)}, /quit")
    told = _COMMANDS[name](console, session, words)
    for text in told:
        console.print(f"[dim]{escape(text)}[/dim]", soft_wrap=True)
    return True


def _help(console: Console, session: Session, words: list[str]) -> list[str]:
    return list[str](HELP.splitlines())


def _steer(console: Console, session: Session, words: list[str]) -> list[str]:
    alphas = [word for word in words if word.startswith("alpha=")]
    site, *rest = [word for word in words if word not in alphas] or [""]
    if len(rest) not in (1, 2) or len(alphas) > 1:
        raise InvalidArgument('write /steer SITE FILE, or /steer SITE "towards this" "away from this"; then alpha=X')
    alpha = _float(alphas[0].removeprefix("alpha="), "alpha") if alphas else None
    if len(rest) == 1:
        steering = from_file(site, rest[0], 1.0 if alpha is None else alpha)
    else:
        with console.status("running both prompts"):
            steering = between_prompts(
                session.client, session.info.id, site, rest[0], rest[1], 4.0 if alpha is None else alpha
            )
    session.steerings = [item for item in session.steerings if item.site != steering.site] + [steering]
    return [f"steer {steering}"]


def _alpha(console: Console, session: Session, words: list[str]) -> list[str]:
    if len(words) != 1:
        raise InvalidArgument("write /alpha X, a number")
    if not session.steerings:
        raise InvalidArgument("nothing steers yet; begin with /steer")
    alpha = _float(words[0], "alpha")
    session.steerings = [replace(item, alpha=alpha) for item in session.steerings]
    return session.settings()


def _off(console: Console, session: Session, words: list[str]) -> list[str]:
    session.steerings = []
    return ["no steering"]


def _show(console: Console, session: Session, words: list[str]) -> list[str]:
    if words == ["off"]:
        session.shows = []
        return ["nothing shown"]
    if not words:
        return session.settings() or ["nothing shown; /show SITE[:norm|:unit=N|:top_k=K]"]
    added = [parse_show(word, session.info) for word in words]
    shows = list(dict.fromkeys([*session.shows, *added]))
    if len(shows) > MAX_SHOWS:
        raise InvalidArgument(f"at most {MAX_SHOWS} sites are shown; /show off first")
    session.shows = shows
    return session.settings()


def _sites(console: Console, session: Session, words: list[str]) -> list[str]:
    lines = [f"{session.info.n_layers} layers, 0 … {session.info.n_layers - 1}"]
    for site in session.info.sites:
        layer = "" if site.layers is None else ".LAYER"
        note = "" if site.generate else f"   runs only: {site.note}"
        lines.append(f"  {site.name + layer:<24} {' '.join(site.axes)}{note}")
    return lines


def _reset(console: Console, session: Session, words: list[str]) -> list[str]:
    session.history.clear()
    return ["a new conversation; steering and shown sites stay"]


def _float(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidArgument(f"{what} must be a number, got {text!r}") from None


_Command = Callable[[Console, Session, list[str]], list[str]]

_COMMANDS: dict[str, _Command] = {
    "/help": _help,
    "/steer": _steer,
    "/alpha": _alpha,
    "/off": _off,
    "/show": _show,
    "/sites": _sites,
    "/reset": _reset,
}
