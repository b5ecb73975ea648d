"""What a line that begins with a slash does in the chat."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.markup import escape

from ...protos.errors import InvalidArgument
from .conversation import Conversation
from .shows import MAX_SHOWS, parse_show
from .steering import between_prompts, from_file

__all__ = ["HELP", "obey"]

HELP = """\
  /steer SITE "TOWARDS" "AWAY" [alpha=4]   steer along the difference of two prompts;
                                           10 adds as much as is there
  /steer SITE FILE [alpha=1]               … or along a vector (.npy, .safetensors)
  /alpha X                                 change the strength of all steering
  /off                                     stop steering
  while a reply streams: ↑ ↓ (or + -)      change the strength by a quarter, at once
                         0                 off, and on again
  /show SITE[:norm|:unit=N|:top_k=K]       watch a site beside each token (heads: :head=H)
  /show off                                stop watching
  /sites                                   what this model offers
  /reset                                   forget the conversation
  /help, /quit"""


def obey(console: Console, conversation: Conversation, line: str) -> bool:
    """Do it; False to leave. Raises InvalidArgument for what it does not understand."""
    try:
        name, *words = shlex.split(line)
    except ValueError as error:
        raise InvalidArgument(f"{line}: {error}") from None
    if name in ("/quit", "/exit"):
        return False
    if name not in _COMMANDS:
        raise InvalidArgument(f"no command {name}; there are {', '.join(_COMMANDS)}, /quit")
    told = _COMMANDS[name](console, conversation, words)
    for text in told:
        console.print(f"[dim]{escape(text)}[/dim]", soft_wrap=True)
    return True


def _help(console: Console, conversation: Conversation, words: list[str]) -> list[str]:
    return list[str](HELP.splitlines())


def _steer(console: Console, conversation: Conversation, words: list[str]) -> list[str]:
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
                conversation.client, conversation.info.id, site, rest[0], rest[1], 4.0 if alpha is None else alpha
            )
    kept = [item for item in conversation.control.setting.steered() if item.site != steering.site]
    _change(conversation, steerings=(*kept, steering), strength=1.0, on=True)
    return [f"steer {steering}"]


def _alpha(console: Console, conversation: Conversation, words: list[str]) -> list[str]:
    if len(words) != 1:
        raise InvalidArgument("write /alpha X, a number")
    steerings = conversation.control.setting.steerings
    if not steerings:
        raise InvalidArgument("nothing steers yet; begin with /steer")
    alpha = _float(words[0], "alpha")
    _change(conversation, steerings=tuple(replace(item, alpha=alpha) for item in steerings), strength=1.0, on=True)
    return conversation.control.setting.lines()


def _off(console: Console, conversation: Conversation, words: list[str]) -> list[str]:
    _change(conversation, steerings=())
    return ["no steering"]


def _show(console: Console, conversation: Conversation, words: list[str]) -> list[str]:
    if words == ["off"]:
        _change(conversation, shows=())
        return ["nothing shown"]
    if not words:
        return conversation.control.setting.lines() or ["nothing shown; /show SITE[:norm|:unit=N|:top_k=K]"]
    added = [parse_show(word, conversation.info) for word in words]
    shows = tuple(dict.fromkeys([*conversation.control.setting.shows, *added]))
    if len(shows) > MAX_SHOWS:
        raise InvalidArgument(f"at most {MAX_SHOWS} sites are shown; /show off first")
    _change(conversation, shows=shows)
    return conversation.control.setting.lines()


def _sites(console: Console, conversation: Conversation, words: list[str]) -> list[str]:
    lines = [f"{conversation.info.n_layers} layers, 0 … {conversation.info.n_layers - 1}"]
    for site in conversation.info.sites:
        layer = "" if site.layers is None else ".LAYER"
        note = "" if site.generate else f"   runs only: {site.note}"
        lines.append(f"  {site.name + layer:<24} {' '.join(site.axes)}{note}")
    return lines


def _reset(console: Console, conversation: Conversation, words: list[str]) -> list[str]:
    conversation.history.clear()
    return ["a new conversation; steering and shown sites stay"]


def _change(conversation: Conversation, **values: Any) -> None:
    conversation.control.change(replace(conversation.control.setting, **values))


def _float(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidArgument(f"{what} must be a number, got {text!r}") from None


_Command = Callable[[Console, Conversation, list[str]], list[str]]

_COMMANDS: dict[str, _Command] = {
    "/help": _help,
    "/steer": _steer,
    "/alpha": _alpha,
    "/off": _off,
    "/show": _show,
    "/sites": _sites,
    "/reset": _reset,
}
