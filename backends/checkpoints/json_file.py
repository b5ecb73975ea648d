"""A JSON file of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from ...protos.errors import InvalidArgument

__all__ = ["json_object"]


def json_object(file: Path) -> dict[str, Any]:
    """The object that a file holds. Raises InvalidArgument, and OSError where it cannot be read."""
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidArgument(f"{file} is not valid JSON ({error}); fetch or copy it again") from error
    if not isinstance(content, dict):
        raise InvalidArgument(f"{file} does not hold a JSON object; fetch or copy it again")
    return cast("dict[str, Any]", content)
