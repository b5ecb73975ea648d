"""Messages as a checkpoint's chat template wants them: content as a string or, of many models that also see, as a list of parts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["rendered", "takes_parts"]

_PROBE = "Content of 5 words here."


def takes_parts(chat: Any) -> bool:
    """Whether the template reads parts alone: of a string it would write nothing, and say nothing either."""
    if not chat.chat_template:
        return False
    return not _writes(chat, parts=False) and _writes(chat, parts=True)


def rendered(chat: Any, messages: Iterable[tuple[str, str]], *, parts: bool, reply: bool, goes_on: bool = False) -> str:
    """The text of (role, content) messages, with the beginning of a reply where one is asked for. Raises what the template does.

    `goes_on`: it ends with the last message's own text, whatever the template writes behind one.
    """
    shaped = [{"role": role, "content": _content(content, parts=parts)} for role, content in messages]
    return str(
        chat.apply_chat_template(shaped, tokenize=False, add_generation_prompt=reply, continue_final_message=goes_on)
    )


def _content(text: str, *, parts: bool) -> Any:
    return [{"type": "text", "text": text}] if parts else text


def _writes(chat: Any, *, parts: bool) -> bool:
    try:
        return _PROBE in rendered(chat, [("user", _PROBE)], parts=parts, reply=True)
    except Exception:  # noqa: BLE001 - the template is the checkpoint's program and raises what it likes
        return False
