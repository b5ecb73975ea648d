"""JSON from a stranger."""

from __future__ import annotations

import json
from typing import Any, cast

from ..errors import InvalidArgument

__all__ = ["json_object", "json_text"]

MAX_JSON_BYTES = 4 << 20


def json_object(data: bytes, what: str) -> dict[str, Any]:
    """The object that a file holds. Raises InvalidArgument for anything else, NaN and infinity included."""
    if len(data) > MAX_JSON_BYTES:
        raise InvalidArgument(f"{what} has {len(data):,} bytes; at most {MAX_JSON_BYTES:,} are allowed")
    try:
        found = json.loads(data.decode("utf-8"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{what} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise InvalidArgument(f"{what} holds no JSON object")
    return cast("dict[str, Any]", found)


def json_text(data: Any) -> bytes:
    """JSON as our files have it."""
    return (json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
