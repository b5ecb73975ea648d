"""A config.json whose missing keys are errors: what a library assumes by default is not assumed here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...protos.errors import InvalidArgument

__all__ = ["Config"]


class Config:
    """Settings by key; null counts as missing."""

    def __init__(self, values: Mapping[str, Any], aliases: Mapping[str, str] | None = None) -> None:
        self._values = values
        self._aliases = aliases or {}

    def get(self, key: str, default: Any = None) -> Any:
        """A value, or the default where there is none."""
        value = self._values.get(self._aliases.get(key, key))
        return default if value is None else value

    def __getitem__(self, key: str) -> Any:
        """A value. Raises InvalidArgument where there is none."""
        value = self.get(key)
        if value is None:
            raise InvalidArgument(f"config.json has no {self._aliases.get(key, key)}; write it out")
        return value

    def nullable(self, key: str) -> Any:
        """A value or null, written out. Raises InvalidArgument where the key is missing."""
        if self._aliases.get(key, key) not in self._values:
            raise InvalidArgument(f"config.json has no {key}; write it out, as null if there is none")
        return self.get(key)
