"""The fields of a foreign JSON dialect, taken one by one: what is left over, or cannot be honoured, is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard, TypeVar, cast

from ....protos.errors import InvalidArgument

__all__ = ["Fields", "brief", "is_list"]

T = TypeVar("T")


class Fields:
    """A JSON object being read. `null` counts as absent, as OpenAI's clients mean it."""

    def __init__(self, data: object, path: str = "") -> None:
        if not isinstance(data, Mapping):
            raise InvalidArgument(f"{path or 'the body'} must be an object, got {brief(data)}")
        self._left = dict(cast("Mapping[str, Any]", data))
        self._path = path
        self._known: list[str] = []

    def name(self, field: str) -> str:
        """The field as messages call it."""
        return f"{self._path}.{field}" if self._path else field

    def raw(self, field: str) -> Any:
        """The value as it came; None when absent."""
        self._known.append(field)
        return self._left.pop(field, None)

    def take(self, field: str, kind: type[T], default: T) -> T:
        """The value, of one type; whole numbers do for floats."""
        value = self.optional(field, kind)
        return default if value is None else value

    def optional(self, field: str, kind: type[T]) -> T | None:
        """The value, of one type, or None."""
        value: Any = self.raw(field)
        if value is None:
            return None
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise InvalidArgument(f"{self.name(field)} must be {_KINDS.get(kind, kind.__name__)}, got {brief(value)}")
        return cast("T", value)

    def required(self, field: str, kind: type[T]) -> T:
        """The value, of one type."""
        value = self.optional(field, kind)
        if value is None:
            raise InvalidArgument(f"{self.name(field)} is missing; it has no default")
        return value

    def strings(self, field: str) -> tuple[str, ...]:
        """A string or a list of strings; empty when absent."""
        value = self.raw(field)
        items: Any = [value] if isinstance(value, str) else [] if value is None else value
        if not is_list(items) or not all(isinstance(item, str) for item in items):
            raise InvalidArgument(f"{self.name(field)} must be a string or a list of strings, got {brief(value)}")
        return tuple(items)

    def list_of(self, field: str) -> list[Any]:
        """A list, whatever it holds."""
        value: Any = self.raw(field)
        if not is_list(value):
            raise InvalidArgument(f"{self.name(field)} must be a list, got {brief(value)}")
        return value

    def harmless(self, *fields: str) -> None:
        """Take fields that change nothing in the answer, whatever they hold."""
        for field in fields:
            self.raw(field)

    def only(self, field: str, *allowed: Any) -> None:
        """Refuse a field that is not honoured, unless it holds a value that asks for nothing."""
        value = self.raw(field)
        if value is not None and not any(type(value) is type(a) and value == a for a in allowed):
            may = ", ".join(repr(a) for a in allowed)
            raise InvalidArgument(
                f"{self.name(field)} is not supported here, so {brief(value)} cannot be honoured; "
                + (f"leave it out or send {may}" if may else "leave it out")
            )

    def done(self) -> None:
        """Refuse what nobody took."""
        if self._left:
            where = self._path or "the body"
            raise InvalidArgument(
                f"{where} has unknown fields {sorted(self._left)}; allowed: {', '.join(sorted(set(self._known)))}"
            )


_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
}


def is_list(value: object) -> TypeGuard[list[Any]]:
    """Whether a JSON value is a list."""
    return isinstance(value, list)


def brief(data: object) -> str:
    """A value for an error message, at most 60 characters of it."""
    try:
        text = repr(data)
    except RecursionError:
        return "something nested too deeply to show"
    return text if len(text) <= 60 else text[:57] + "..."
