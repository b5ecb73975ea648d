"""JSON schemas of value classes, from their type hints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from probewire.protos.operations import OPERATIONS
from probewire.protos.spec import Where
from probewire.protos.tensors import DTYPES, Tensor
from probewire.server.api.http.schema import Schemas, field_docs, object_schema


@dataclass(frozen=True, slots=True)
class Bare:
    """Has no fields."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """Has a tensor."""

    rows: Tensor


@dataclass(frozen=True, slots=True)
class Leaf:
    """A leaf."""

    name: str
    """What it is called."""
    size: int = 3
    ratio: float | None = None
    kind: Literal["a", "b"] = "a"
    on: bool = False
    note: str = ""
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Tree:
    """A tree,

    with itself inside.
    """

    leaf: Leaf
    """The first one."""
    edit: Bare | LowRank | None = None
    children: tuple[Tree, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Child(Leaf):
    """A leaf with more."""

    extra: tuple[int, ...] = ()
    """More of it."""


def of(cls: type) -> dict[str, Any]:
    schemas = Schemas()
    schemas.ref(cls)
    return schemas.definitions


def test_an_object_takes_its_fields_and_no_others() -> None:
    assert object_schema({"a": {"type": "string"}}) == {
        "type": "object",
        "properties": {"a": {"type": "string"}},
        "additionalProperties": False,
    }
    told = object_schema({}, ("a",), "What it is.")
    assert (told["required"], told["description"]) == (["a"], "What it is.")


def test_scalars_have_their_types_defaults_and_descriptions() -> None:
    leaf = of(Leaf)["Leaf"]
    assert leaf["properties"] == {
        "name": {"type": "string", "description": "What it is called."},
        "size": {"type": "integer", "default": 3},
        "ratio": {"type": "number"},
        "kind": {"type": "string", "enum": ["a", "b"], "default": "a"},
        "on": {"type": "boolean", "default": False},
        "note": {"type": "string"},
        "data": {"type": "string", "format": "byte"},
    }
    assert leaf["description"] == "A leaf."


def test_what_has_a_default_is_not_required() -> None:
    found = of(Tree)
    assert found["Leaf"]["required"] == ["name"]
    assert found["Tree"]["required"] == ["leaf"], "a default may be made by a function too"
    assert "required" not in found["Bare"]


def test_a_class_that_holds_itself_refers_to_itself() -> None:
    found = of(Tree)
    assert found["Tree"]["properties"]["children"] == {
        "type": "array",
        "items": {"$ref": "#/components/schemas/Tree"},
    }
    assert set(found) == {"Tree", "Leaf", "Bare", "LowRank", "Tensor"}


def test_a_described_reference_is_wrapped() -> None:
    """Whatever stands beside $ref is ignored by readers of OpenAPI 3.0."""
    assert of(Tree)["Tree"]["properties"]["leaf"] == {
        "allOf": [{"$ref": "#/components/schemas/Leaf"}],
        "description": "The first one.",
    }


def test_a_union_is_an_object_with_one_key_and_a_bare_name_where_that_says_all() -> None:
    bare, tensor, name = of(Tree)["Tree"]["properties"]["edit"]["oneOf"]
    assert bare == object_schema({"bare": {"$ref": "#/components/schemas/Bare"}}, ("bare",))
    assert tensor == object_schema({"low_rank": {"$ref": "#/components/schemas/LowRank"}}, ("low_rank",))
    assert name == {"type": "string", "enum": ["bare"]}


def test_the_plain_class_of_a_union_is_written_without_its_name() -> None:
    """Conditions alone were there before their combinations."""
    one, everything, either = of(Where)["Where"]["properties"]["when"]["oneOf"]
    assert one == {"$ref": "#/components/schemas/Condition"}
    assert everything == object_schema({"all_of": {"$ref": "#/components/schemas/AllOf"}}, ("all_of",))
    assert either == object_schema({"any_of": {"$ref": "#/components/schemas/AnyOf"}}, ("any_of",))


def test_a_mapping_is_an_object_of_texts() -> None:
    assert of(Tree)["Tree"]["properties"]["labels"] == {"type": "object", "additionalProperties": {"type": "string"}}


def test_a_tensor_is_lists_or_an_object_with_its_dtype() -> None:
    lists, whole = of(Tensor)["Tensor"]["oneOf"]
    assert lists["type"] == "array"
    assert whole["properties"]["dtype"]["enum"] == list(DTYPES)
    assert whole["required"] == ["dtype", "shape", "data"]


def test_a_list_refers_to_its_items() -> None:
    schemas = Schemas()
    assert schemas.array(Leaf) == {"type": "array", "items": {"$ref": "#/components/schemas/Leaf"}}
    assert "Leaf" in schemas.definitions


def test_descriptions_are_the_docstrings_under_fields_of_bases_too() -> None:
    assert field_docs(Child) == {"name": "What it is called.", "extra": "More of it."}
    made_at_runtime = type("Made", (), {"__annotations__": {"a": int}})
    assert field_docs(made_at_runtime) == {}, "no source is at hand"


@pytest.mark.parametrize("name", [o.name for o in OPERATIONS])
def test_every_reference_of_an_operations_messages_leads_somewhere(name: str) -> None:
    schemas = Schemas()
    row = next(o for o in OPERATIONS if o.name == name)
    for cls in (row.request, row.answer):
        if isinstance(cls, type) and hasattr(cls, "__dataclass_fields__"):
            schemas.ref(cls)
    references = {text.rpartition("/")[2] for text in _references(schemas.definitions)}
    assert references <= set(schemas.definitions)
    assert all(schemas.definitions.values()), "none was begun and left empty"


def _references(schema: Any) -> list[str]:
    if isinstance(schema, dict):
        own = [schema["$ref"]] if isinstance(schema.get("$ref"), str) else []
        return own + [text for value in schema.values() for text in _references(value)]
    return [text for value in schema for text in _references(value)] if isinstance(schema, list) else []
