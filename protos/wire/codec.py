"""Values to and from protobuf and JSON: one walk over each value class's own type hints.

Protobuf messages carry the same names as the value classes and their fields. A union of classes is a `oneof` whose
field names are the classes' names in snake case; in JSON it is an object with that one key.
"""

from __future__ import annotations

import base64
import dataclasses
import re
import types
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

from .. import probewire_pb2 as pb
from ..errors import InvalidArgument
from ..model import ONLY_TEXT
from ..tensors import FLOAT_DTYPES, Array, Tensor, narrowed, numpy_dtype

__all__ = ["from_json", "from_proto", "snake", "to_json", "to_proto"]

T = TypeVar("T")
_MISSING: Any = dataclasses.MISSING
MAX_EXACT_INT = 1 << 1000
"""Integers beyond overflow a float."""
MIN_INT, MAX_INT = -(1 << 63), (1 << 63) - 1
"""What the contract's int64 holds."""
_NAMED = ("NaN", "Infinity", "-Infinity")
"""What JSON has no numbers for; none is the base64 of one number."""
_PB: Any = pb  # generated messages are looked up by the value class's name


@dataclasses.dataclass(frozen=True, slots=True)
class _Shape:
    """What a field's type hint says, in the terms that both encodings need."""

    kind: Literal["scalar", "tensor", "value", "union", "map"]
    type: Any
    """The scalar type, value class, or tuple of classes of a union."""
    many: bool
    """A tuple of it."""
    optional: bool
    """None is allowed."""

    @property
    def plain(self) -> Any:
        """The class of a union that is written without its name: its field's own; the others are beside it."""
        members = self.type if self.kind == "union" else ()
        return next((cls for cls in members if getattr(cls, "wire_plain", False)), None)


@lru_cache(maxsize=256)
def _fields(cls: type) -> tuple[tuple[dataclasses.Field[Any], _Shape], ...]:
    hints = get_type_hints(cls)
    return tuple((field, _shape(hints[field.name])) for field in dataclasses.fields(cls))


def _shape(hint: Any) -> _Shape:
    members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    optional = type(None) in members
    members = tuple(m for m in members if m is not type(None))
    if len(members) != 1:
        return _Shape("union", members, False, optional)
    [only] = members
    if get_origin(only) is tuple:
        inner = _shape(get_args(only)[0])
        return _Shape(inner.kind, inner.type, True, optional)
    return _single(only, optional)


def _single(hint: Any, optional: bool) -> _Shape:
    if get_origin(hint) is Literal:
        literals = [a for a in get_args(hint) if a is not None]
        return _Shape("scalar", type(literals[0]), False, optional or None in get_args(hint))
    if get_origin(hint) is Mapping:
        return _Shape("map", str, False, optional)
    if hint is Tensor:
        return _Shape("tensor", Tensor, False, optional)
    if dataclasses.is_dataclass(hint):
        return _Shape("value", hint, False, optional)
    return _Shape("scalar", hint, False, optional)


@lru_cache(maxsize=256)
def snake(cls: type) -> str:
    """A class's name in a union: in snake case, unless it has another there."""
    return getattr(cls, "wire_name", "") or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()


# ---- protobuf ----------------------------------------------------------------------------------------------------


def to_proto(value: object) -> Any:
    """The protobuf message of a value (its class's namesake). Raises InvalidArgument for what its fields cannot hold."""
    message = getattr(_PB, type(value).__name__)()
    _fill(message, value)
    return message


def _fill(message: Any, value: object) -> None:
    if isinstance(value, Tensor):
        message.dtype, message.data = value.dtype, value.data
        message.shape.extend(value.shape)
        return
    message.SetInParent()  # a value without fields (zeros, last) is present all the same
    for field, shape in _fields(type(value)):
        item = getattr(value, field.name)
        if item is not None:
            _put(message, field.name, item, shape)


def _put(message: Any, name: str, item: Any, shape: _Shape) -> None:
    if shape.many:
        target = getattr(message, name)
        if hasattr(target, "SetInParent"):  # a wrapper that keeps "empty" apart from "absent"
            target.SetInParent()
            target = target.values
        if shape.kind == "scalar":
            _put_scalar(name, target.extend, item)
        else:
            for element in item:
                _fill_member(target.add(), element, shape)
    elif shape.kind == "scalar":
        _put_scalar(name, partial(setattr, message, name), item)
    elif shape.kind == "map":
        getattr(message, name).update(item)
    elif shape.plain is not None:
        _fill_member(message, item, shape, name)
    else:
        _fill_member(getattr(message, name), item, shape)


def _put_scalar(name: str, put: Callable[[Any], None], item: Any) -> None:
    try:
        put(item)
    except ValueError as error:  # an integer past 64 bits, half a surrogate pair
        raise InvalidArgument(f"{name} cannot be sent: {error}") from None


def _fill_member(message: Any, item: object, shape: _Shape, plain_name: str = "") -> None:
    name = plain_name if type(item) is shape.plain else snake(type(item))
    _fill(getattr(message, name) if shape.kind == "union" else message, item)


def from_proto(cls: type[T], message: Any) -> T:
    """The value of a protobuf message. Raises InvalidArgument when a required field is absent or a value is bad."""
    if cls is Tensor:
        return _tensor(message.dtype, tuple(message.shape), message.data)  # pyright: ignore[reportReturnType] - T is Tensor here
    kwargs: dict[str, Any] = {}
    for field, shape in _fields(cls):
        item = _get(message, field.name, shape)
        if item is _MISSING:
            _require_default(field, cls)
        else:
            kwargs[field.name] = item
    return cls(**kwargs)


def _tensor(dtype: str, shape: tuple[int, ...], data: bytes) -> Tensor:
    """A tensor from a stranger: its bytes may fit a shape that is no array's, such as [0, 2**62] or a hundred ones."""
    tensor = Tensor(dtype, shape, data)
    try:
        tensor.numpy()
    except (ValueError, OverflowError) as error:
        raise InvalidArgument(f"there is no tensor of shape {_brief(list(shape))}: {error}") from None
    return tensor


def _require_default(field: dataclasses.Field[Any], cls: type) -> None:
    if field.default is _MISSING and field.default_factory is _MISSING:
        raise InvalidArgument(f"{snake(cls)}.{field.name} is missing; it has no default")


def _get(message: Any, name: str, shape: _Shape) -> Any:
    if shape.plain is not None:
        named = {name if cls is shape.plain else snake(cls): cls for cls in shape.type}
        return next(
            (from_proto(cls, getattr(message, key)) for key, cls in named.items() if message.HasField(key)), _MISSING
        )
    descriptor = message.DESCRIPTOR.fields_by_name[name]
    if descriptor.has_presence and not message.HasField(name):
        return _MISSING
    item = getattr(message, name)
    if shape.many:
        items = item.values if descriptor.has_presence else item  # a wrapper keeps "empty" apart from "absent"
        return tuple(items) if shape.kind == "scalar" else tuple(_member(i, shape, name) for i in items)
    if shape.kind == "scalar":
        return item
    if shape.kind == "map":
        return dict(item)
    return _member(item, shape, name)


def _member(message: Any, shape: _Shape, name: str) -> Any:
    if shape.kind != "union":
        return from_proto(shape.type, message)
    chosen = message.WhichOneof("kind")
    by_name = {snake(cls): cls for cls in shape.type}
    if chosen not in by_name:
        raise InvalidArgument(f"{name} is {chosen or 'empty'}; give one of {', '.join(by_name)}")
    return from_proto(by_name[chosen], getattr(message, chosen))


# ---- JSON --------------------------------------------------------------------------------------------------------


def to_json(value: object, *, tensors: Literal["base64", "list"] = "base64") -> Any:
    """Plain JSON data of a value. Tensors become {dtype, shape, data} with base64 data or nested lists."""
    if isinstance(value, Tensor):
        data = base64.b64encode(value.data).decode() if tensors == "base64" else _jsonable(value)
        return {"dtype": value.dtype, "shape": list(value.shape), "data": data}
    out: dict[str, Any] = {}
    for field, shape in _fields(type(value)):
        item = getattr(value, field.name)
        if item is not None:
            out[field.name] = _json_item(item, shape, tensors)
    return out


def _json_item(item: Any, shape: _Shape, tensors: Literal["base64", "list"]) -> Any:
    if shape.many:
        one = dataclasses.replace(shape, many=False)
        plain = shape.kind == "scalar" and shape.type is not bytes
        return list(item) if plain else [_json_item(i, one, tensors) for i in item]
    if shape.kind == "scalar":
        return base64.b64encode(item).decode() if shape.type is bytes else item
    if shape.kind == "map":
        return dict(item)
    return _json_value(item, shape, tensors)


def _json_value(item: object, shape: _Shape, tensors: Literal["base64", "list"]) -> Any:
    encoded = to_json(item, tensors=tensors)
    named = shape.kind == "union" and type(item) is not shape.plain
    return {snake(type(item)): encoded} if named else encoded


def _jsonable(tensor: Tensor) -> Any:
    """Nested lists; what JSON numbers lack is written as protobuf's JSON does: "NaN", "Infinity", "-Infinity"."""
    array = tensor.numpy()
    if array.dtype.kind in "iub":
        return array.tolist()
    array = array.astype(np.float64)
    if np.isfinite(array).all():
        return array.tolist()
    named = array.astype(object)
    for mask, name in ((np.isnan(array), "NaN"), (array == np.inf, "Infinity"), (array == -np.inf, "-Infinity")):
        named[mask] = name
    return named.tolist()


def from_json(cls: type[T], data: Any, path: str = "") -> T:
    """The value of JSON data. Raises InvalidArgument for unknown keys, missing ones, and wrong types, naming the path."""
    if cls is Tensor:
        return _tensor_from_json(data, path)  # pyright: ignore[reportReturnType] - T is Tensor here
    short = getattr(cls, "short", None)
    if short is not None and isinstance(data, str):
        return short(data)
    fields = {field.name: (field, shape) for field, shape in _fields(cls)}
    given = {} if isinstance(data, str) and not fields else _object(data)
    if given is None:
        raise InvalidArgument(f"{path or snake(cls)} must be an object, got {_brief(data)}")
    unknown = [key for key in given if key not in fields]
    if unknown:
        raise InvalidArgument(f"{path or snake(cls)} has unknown fields {unknown}; allowed: {', '.join(fields)}")
    kwargs: dict[str, Any] = {}
    for name, (field, shape) in fields.items():
        if given.get(name) is None:
            _require_default(field, cls)
        else:
            kwargs[name] = _value_from_json(given[name], shape, f"{path}.{name}" if path else name)
    return cls(**kwargs)


def _object(data: object) -> dict[str, Any] | None:
    """The data, if it is a JSON object."""
    return cast("dict[str, Any]", data) if isinstance(data, dict) else None


def _value_from_json(data: Any, shape: _Shape, path: str) -> Any:
    if shape.many:
        if isinstance(data, str) and shape.type is str:
            return (data,)
        if isinstance(data, str) and hasattr(shape.type, "short"):
            return (shape.type.short(data),)
        if not isinstance(data, list):
            raise InvalidArgument(f"{path} must be a list, got {_brief(data)}")
        one = dataclasses.replace(shape, many=False)
        items = enumerate(cast("list[Any]", data))
        return tuple(_value_from_json(item, one, f"{path}[{i}]") for i, item in items)
    if shape.kind == "scalar":
        return _scalar(data, shape.type, path)
    if shape.kind == "map":
        return dict(data)
    if shape.kind == "union":
        return _union_from_json(data, shape, path)
    return from_json(shape.type, data, path)


def _union_from_json(data: Any, shape: _Shape, path: str) -> Any:
    by_name = {snake(cls): cls for cls in shape.type if cls is not shape.plain}
    given: dict[str, Any] | None = {data: {}} if isinstance(data, str) else _object(data)
    if shape.plain is not None and given is not None and by_name.keys().isdisjoint(given):
        return from_json(shape.plain, data, path)
    if given is None or len(given) != 1 or next(iter(given)) not in by_name:
        raise InvalidArgument(f"{path} must be an object with one key of {', '.join(by_name)}; got {_brief(data)}")
    [(name, body)] = given.items()
    return from_json(by_name[name], body, f"{path}.{name}")


def _scalar(data: Any, kind: type, path: str) -> Any:
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        if abs(data) > MAX_EXACT_INT:
            raise InvalidArgument(f"{path} is too large a number: {_brief(data)}")
        return float(data)
    if kind is int and isinstance(data, float) and data.is_integer():
        data = int(data)
    if kind is bytes:
        return _bytes(data, path)
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        hint = f"; {ONLY_TEXT}" if path.endswith(".content") else ""
        raise InvalidArgument(f"{path} must be a {kind.__name__}, got {_brief(data)}{hint}")
    if kind is int and not MIN_INT <= data <= MAX_INT:
        raise InvalidArgument(f"{path} must be an integer of 64 bits, got {_brief(data)}")
    return data


def _bytes(data: Any, path: str) -> bytes:
    try:
        return base64.b64decode(data, validate=True)
    except (ValueError, TypeError) as error:  # binascii's own, or that of letters outside ASCII; no string at all
        raise InvalidArgument(f"{path} is not base64: {error}") from None


def _tensor_from_json(data: Any, path: str) -> Tensor:
    if isinstance(data, (list, int, float)) and not isinstance(data, bool):
        return Tensor.of(cast("list[Any] | float", data))
    if data == "-Infinity":  # JSON has no number for it
        return Tensor.of(float("-inf"))
    given = _object(data)
    if given is None or set(given) != {"dtype", "shape", "data"}:
        raise InvalidArgument(
            f"{path} must be nested lists, or an object with dtype, shape and data; got {_brief(data)}"
        )
    shape = _value_from_json(given["shape"], _Shape("scalar", int, True, False), f"{path}.shape")
    dtype = _scalar(given["dtype"], str, f"{path}.dtype")
    if isinstance(given["data"], str) and given["data"] not in _NAMED:
        return _tensor(dtype, shape, _bytes(given["data"], f"{path}.data"))
    try:
        numbers = [float(x) for x in np.ravel(np.array(given["data"], dtype=object))]  # float() reads the names too
        wide = np.array(numbers, dtype=np.float64)
        array = (_narrowed(wide, dtype, path) if dtype in FLOAT_DTYPES else wide.astype(numpy_dtype(dtype))).reshape(
            shape
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidArgument(f"{path}.data does not hold numbers of shape {list(shape)}: {error}") from None
    return Tensor.of(array)


def _narrowed(array: Array, dtype: str, path: str) -> Array:
    return narrowed(array, dtype, f"send {path}.data in another dtype")


def _brief(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 60 else text[:57] + "..."
