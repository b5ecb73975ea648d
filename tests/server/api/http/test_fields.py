"""JSON objects of foreign dialects, read field by field."""

from __future__ import annotations

from typing import Any

import pytest

from probewire.protos.errors import InvalidArgument
from probewire.server.api.http.fields import Fields, brief


def refused(read: Any) -> str:
    """The message that reading ends with."""
    with pytest.raises(InvalidArgument) as caught:
        read()
    return caught.value.message


@pytest.mark.parametrize("data", [[], "text", 3, None])
def test_only_an_object_has_fields(data: object) -> None:
    assert refused(lambda: Fields(data)) == f"the body must be an object, got {data!r}"
    assert refused(lambda: Fields(data, "messages[2]")) == f"messages[2] must be an object, got {data!r}"


def test_a_field_that_is_absent_or_null_has_its_default() -> None:
    fields = Fields({"null": None})
    assert fields.take("null", int, 7) == 7
    assert fields.take("absent", int, 7) == 7
    assert fields.optional("other", str) is None
    assert fields.raw("more") is None
    fields.done()


def test_what_is_falsy_is_not_absent() -> None:
    fields = Fields({"zero": 0, "empty": "", "no": False})
    assert fields.take("zero", int, 7) == 0
    assert fields.take("empty", str, "x") == ""
    assert fields.take("no", bool, True) is False


def test_a_whole_number_does_for_a_float_and_becomes_one() -> None:
    value = Fields({"temperature": 1}).take("temperature", float, 0.5)
    assert (value, type(value)) == (1.0, float)


@pytest.mark.parametrize(
    ("kind", "value", "wanted"),
    [
        (int, True, "an integer"),
        (int, 1.0, "an integer"),
        (int, "1", "an integer"),
        (float, True, "a number"),
        (float, "1.0", "a number"),
        (bool, 1, "true or false"),
        (bool, "true", "true or false"),
        (str, 1, "a string"),
        (dict, [], "dict"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(kind: type, value: object, wanted: str) -> None:
    assert refused(lambda: Fields({"x": value}).optional("x", kind)) == f"x must be {wanted}, got {value!r}"
    assert refused(lambda: Fields({"x": value}, "a.b").optional("x", kind)) == f"a.b.x must be {wanted}, got {value!r}"


@pytest.mark.parametrize("data", [{}, {"role": None}])
def test_a_required_field_cannot_be_left_out(data: dict[str, Any]) -> None:
    assert refused(lambda: Fields(data, "messages[0]").required("role", str)) == (
        "messages[0].role is missing; it has no default"
    )


def test_strings_come_alone_or_in_a_list() -> None:
    fields = Fields({"one": "a", "many": ["a", "b"], "none": []})
    assert [fields.strings(name) for name in ("one", "many", "none", "absent")] == [("a",), ("a", "b"), (), ()]


@pytest.mark.parametrize("value", [1, {}, ["a", 1], [["a"]], [None]])
def test_what_is_no_string_among_strings_is_refused(value: object) -> None:
    assert refused(lambda: Fields({"stop": value}).strings("stop")) == (
        f"stop must be a string or a list of strings, got {value!r}"
    )


def test_a_list_is_needed_where_one_is_asked_for() -> None:
    assert Fields({"messages": [1, "a"]}).list_of("messages") == [1, "a"]
    for data, got in (({}, "None"), ({"messages": {}}, "{}"), ({"messages": "ab"}, "'ab'")):
        assert refused(lambda data=data: Fields(data).list_of("messages")) == f"messages must be a list, got {got}"


def test_what_cannot_be_honoured_is_refused_unless_it_asks_for_nothing() -> None:
    for value in (0, 0.0, None):
        fields = Fields({"penalty": value})
        fields.only("penalty", 0, 0.0)
        fields.done()
    message = refused(lambda: Fields({"penalty": 0.5}).only("penalty", 0, 0.0))
    assert message == "penalty is not supported here, so 0.5 cannot be honoured; leave it out or send 0, 0.0"
    assert refused(lambda: Fields({"audio": {}}).only("audio")).endswith("so {} cannot be honoured; leave it out")


def test_a_value_that_is_equal_and_of_another_type_asks_for_something() -> None:
    """False == 0, and 1 == True."""
    assert "False cannot be honoured" in refused(lambda: Fields({"n": False}).only("n", 0))
    assert "1 cannot be honoured" in refused(lambda: Fields({"store": 1}).only("store", True))


def test_what_nobody_took_is_refused_with_what_may_be_sent() -> None:
    fields = Fields({"b": 1, "z": 2, "y": 3})
    fields.harmless("user", "b", "user")
    assert refused(fields.done) == "the body has unknown fields ['y', 'z']; allowed: b, user"
    assert refused(Fields({"x": 1}, "probewire").done).startswith("probewire has unknown fields ['x']")


def test_reading_leaves_the_callers_object_as_it_was() -> None:
    data = {"a": 1}
    assert Fields(data).take("a", int, 0) == 1
    assert data == {"a": 1}


def test_a_value_in_a_message_is_short() -> None:
    assert brief("a" * 58) == repr("a" * 58), "60 characters with its quotes"
    assert brief("a" * 59) == "'" + "a" * 56 + "..."
    assert len(brief(list(range(1000)))) == 60


def test_a_value_nested_too_deeply_to_write_has_a_message_all_the_same() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert brief(nested) == "something nested too deeply to show"
