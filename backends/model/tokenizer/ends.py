"""Which tokens end a generation: all that the checkpoint's files name, since one of them may be out of date."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from ....protos.generation.messages import Message
from .chat import rendered, takes_parts
from .codec import Codec

__all__ = ["end_ids"]

_FILES = ("generation_config.json", "config.json")
_REPLY = "A reply of 7 words for the template."


def end_ids(folder: Path, codec: Codec, vocab_size: int) -> tuple[int, ...]:
    """Ids in order, of both configs, the tokenizer, and what the chat template writes behind a reply."""
    found = {i for name in _FILES for i in _configured(folder / name)} | _behind_reply(codec)
    if codec.eos_id is not None:
        found.add(codec.eos_id)
    return tuple(sorted(i for i in found if 0 <= i < vocab_size))


def _configured(path: Path) -> set[int]:
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    named: list[Any] = [config.get("eos_token_id")]
    if isinstance(config.get("text_config"), dict):  # of a model that reads pictures too
        named.append(config["text_config"].get("eos_token_id"))
    ids = [i for item in named for i in (cast("list[Any]", item) if isinstance(item, list) else [item])]
    return {i for i in ids if isinstance(i, int) and not isinstance(i, bool)}


def _behind_reply(codec: Codec) -> set[int]:
    """The mark of the end of a turn, where the template writes one. What only opens the next turn does not count."""
    if not codec.chat.chat_template:
        return set()
    messages = [Message("user", "Hello"), Message("assistant", _REPLY)]
    try:
        text = rendered(codec.chat, messages, parts=takes_parts(codec.chat), reply=False)
    except Exception:  # noqa: BLE001 - the template is the checkpoint's program and raises what it likes
        return set()
    before, reply, behind = text.rpartition(_REPLY)
    ids = codec.encode(behind.lstrip()) if reply and before else []
    return set(ids[:1]) & codec.added_ids
