"""JSON schemas of the value classes, for OpenAPI: from their type hints, as protos/wire/codec.py reads them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
import types
from collections.abc import Mapping
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, Union, cast, get_args, get_origin, get_type_hints

from ....protos.errors import InvalidArgument
from ....protos.tensors import DTYPES, Tensor
from ....protos.wire.codec import snake

__all__ = ["Schemas", "object_schema"]

Schema = dict[str, Any]

_SCALARS: dict[type, Schema] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bytes: {"type": "string", "format": "byte"},
}

_TENSOR: Schema = {
    "description": "Nested lists of numbers, or dtype, shape and data: base64 of little-endian bytes in C order, or lists.",
    "oneOf": [
        {"type": "array", "items": {}},
        {
            "type": "object",
            "required": ["dtype", "shape", "data"],
            "additionalProperties": False,
            "properties": {
                "dtype": {"type": "string", "enum": list(DTYPES)},
                "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                "data": {"oneOf": [{"type": "string", "format": "byte"}, {"type": "array", "items": {}}]},
            },
        },
    ],
}


def object_schema(properties: Mapping[str, Schema], required: tuple[str, ...] = (), description: str = "") -> Schema:
    """An object that takes these fields and no others."""
    schema: Schema = {"type": "object", "properties": dict(properties), "additionalProperties": False}
    if required:
        schema["required"] = list(required)
    if description:
        schema["description"] = description
    return schema


class Schemas:
    """Collects the definitions that references point to."""

    def __init__(self) -> None:
        self.definitions: dict[str, Schema] = {}

    def ref(self, cls: type) -> Schema:
        """A reference to a value class."""
        if cls.__name__ not in self.definitions:
            self.definitions[cls.__name__] = {}  # a class that holds itself would recur here
            self.definitions[cls.__name__] = _TENSOR if cls is Tensor else self._object(cls)
        return {"$ref": f"#/components/schemas/{cls.__name__}"}

    def array(self, cls: type) -> Schema:
        """A list of a value class."""
        return {"type": "array", "items": self.ref(cls)}

    def properties(self, cls: type) -> dict[str, Schema]:
        """The fields of a value class, for objects that extend it."""
        hints, texts = get_type_hints(cls), field_docs(cls)
        found: dict[str, Schema] = {}
        for field in dataclasses.fields(cls):
            schema = self._hint(hints[field.name])
            if text := texts.get(field.name):
                # Siblings of $ref are ignored by OpenAPI 3.0 tools, so a described reference is wrapped.
                schema = {"allOf": [schema]} if "$ref" in schema else schema
                schema = {**schema, "description": text}
            if isinstance(field.default, (str, bool, int, float)) and field.default != "":
                schema = {**schema, "default": field.default}
            found[field.name] = schema
        return found

    def _object(self, cls: type) -> Schema:
        required = tuple(
            field.name
            for field in dataclasses.fields(cls)
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        return object_schema(self.properties(cls), required, inspect.cleandoc(cls.__doc__ or ""))

    def _hint(self, hint: Any) -> Schema:
        origin = get_origin(hint)
        if origin in (Union, types.UnionType):
            members = [member for member in get_args(hint) if member is not type(None)]
            return self._hint(members[0]) if len(members) == 1 else self._union(members)
        if origin is tuple:
            return {"type": "array", "items": self._hint(get_args(hint)[0])}
        if origin is Literal:
            return {"type": "string", "enum": list(get_args(hint))}
        if origin is Mapping:
            return {"type": "object", "additionalProperties": {"type": "string"}}
        return dict(_SCALARS[hint]) if hint in _SCALARS else self.ref(hint)

    def _union(self, members: list[type]) -> Schema:
        """An object with one key, the class's name in snake case, or the one plain class itself; the bare name too where it says all."""
        plain = [m for m in members if getattr(m, "wire_plain", False)]
        named = [m for m in members if m not in plain]
        choices = [self.ref(m) for m in plain] + [object_schema({snake(m): self.ref(m)}, (snake(m),)) for m in named]
        bare = [snake(member) for member in named if _needs_nothing(member)]
        return {"oneOf": [*choices, {"type": "string", "enum": bare}] if bare else choices}


def _needs_nothing(cls: type) -> bool:
    """Whether a value can be made without a field."""
    try:
        cls()
    except (TypeError, InvalidArgument):
        return False
    return True


@lru_cache(maxsize=256)
def field_docs(cls: type) -> dict[str, str]:
    """The docstrings under the fields of a class and its bases; nothing where the source is not at hand."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):
            continue
        body = cast("ast.ClassDef", tree.body[0]).body
        for field, below in pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                text = below.value
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    found[field.target.id] = inspect.cleandoc(text.value)
    return found
