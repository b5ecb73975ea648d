"""Messages from strangers: garbage, fields that the contract does not have, and messages without end are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError, Message as ProtoMessage
from google.protobuf.unknown_fields import UnknownFieldSet

from ..errors import InvalidArgument

__all__ = ["parse"]

MAX_PARTS = 1 << 17
"""Messages inside one request, at any depth: an empty one takes two bytes to send, and a microsecond to look at."""


def parse(message_type: Callable[[], Any], data: bytes) -> Any:
    """Decode bytes from a stranger. Raises InvalidArgument for garbage and for fields this version does not know."""
    message = message_type()
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise InvalidArgument(f"not a {message.DESCRIPTOR.name} message: {error}") from None
    refuse_unknown(message)
    return message


def refuse_unknown(message: ProtoMessage, path: str = "", left: int = MAX_PARTS) -> int:
    """Raise InvalidArgument when the message, at any depth, holds a field that the contract does not have.

    Or more than `left` messages; gives how many of these are left.
    """
    unknown = UnknownFieldSet(message)
    if len(unknown):
        numbers = sorted({field.field_number for field in unknown})
        where = path or message.DESCRIPTOR.name
        known = ", ".join(f.name for f in message.DESCRIPTOR.fields)
        raise InvalidArgument(f"{where} has unknown field numbers {numbers}; it has only {known}")
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        items: Any = value if field.is_repeated else (value,)
        left -= len(items)
        if left < 0:
            raise InvalidArgument(f"the request holds more than {MAX_PARTS:,} messages, most of them in {field.name}")
        for item in items:
            left = refuse_unknown(item, f"{path}.{field.name}" if path else field.name, left)
    return left
