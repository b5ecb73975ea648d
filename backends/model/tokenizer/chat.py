"""Messages as a checkpoint's chat template wants them: content as a string or, of many models that also see, as a list of parts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ....protos.generation.messages import Message, Tool

__all__ = ["rendered", "takes_parts"]

_PROBE = "Content of 5 words here."


def takes_parts(chat: Any) -> bool:
    """Whether the template reads parts alone: of a string it would write nothing, and say nothing either."""
    if not chat.chat_template:
        return False
    return not _writes(chat, parts=False) and _writes(chat, parts=True)


def rendered(
    chat: Any,
    messages: Iterable[Message],
    *,
    parts: bool,
    reply: bool,
    goes_on: bool = False,
    tools: Iterable[Tool] = (),
) -> str:
    """The text of messages, with the beginning of a reply where one is asked for. Raises what the template does.

    `goes_on`: it ends with the last message's own text, whatever the template writes behind one.
    """
    told = [_tool(tool) for tool in tools]
    return str(
        chat.apply_chat_template(
            [_shaped(message, parts=parts) for message in messages],
            tokenize=False,
            add_generation_prompt=reply,
            continue_final_message=goes_on,
            **({"tools": told} if told else {}),
        )
    )


def _shaped(message: Message, *, parts: bool) -> dict[str, Any]:
    content: Any = [{"type": "text", "text": message.content}] if parts else message.content
    found: dict[str, Any] = {"role": message.role, "content": content}
    if message.tool_calls:
        found["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": json.loads(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return found | {key: value for key in ("tool_call_id", "name") if (value := getattr(message, key))}


def _tool(tool: Tool) -> dict[str, Any]:
    """As OpenAI has it, which templates read."""
    function = {"name": tool.name, "description": tool.description, "parameters": json.loads(tool.parameters)}
    return {"type": "function", "function": function}


def _writes(chat: Any, *, parts: bool) -> bool:
    try:
        return _PROBE in rendered(chat, [Message("user", _PROBE)], parts=parts, reply=True)
    except Exception:  # noqa: BLE001 - the template is the checkpoint's program and raises what it likes
        return False
