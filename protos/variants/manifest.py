"""What is said of a variant beside its numbers: of which model it is, how it was made, and what was measured."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, cast

from ..errors import InvalidArgument
from ..model_info import ModelInfo, WeightInfo
from ..wire.codec import from_json, to_json

__all__ = ["Base", "Manifest", "checked_name", "jsonable"]

MAX_NAME = 64
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def checked_name(name: str) -> str:
    """The name itself. Raises InvalidArgument for one that could be a path, or be taken for a model's or a version's."""
    if not isinstance(name, str) or len(name) > MAX_NAME or not _NAME.fullmatch(name) or not name.strip("."):  # pyright: ignore[reportUnnecessaryIsInstance] - JSON can hold anything
        shown = repr(name if len(str(name)) <= 80 else str(name)[:80] + "…")
        raise InvalidArgument(f"a variant's name has 1 to {MAX_NAME} letters, digits, '.', '_' or '-', got {shown}")
    return name


@dataclass(frozen=True, slots=True)
class Base:
    """The model that a variant changes. Empty: not bound to one yet (an adapter that says nothing of it)."""

    id: str = ""
    model_hash: str = ""
    family: str = ""
    architecture: str = ""
    n_layers: int = 0
    d_model: int = 0
    vocab_size: int = 0
    dtype: str = ""
    """In which it was made."""
    weights: tuple[WeightInfo, ...] = ()
    """Of the model's table those that the deltas are at, and the other parts of their modules: where they lie in a checkpoint."""

    @classmethod
    def of(cls, info: ModelInfo) -> Base:
        """Of a loaded model, as `client.describe()` gives it."""
        return cls(**{one.name: getattr(info, one.name) for one in fields(cls)})

    def trimmed(self, names: Collection[str]) -> Base:
        """With those weights alone that share a module with one of these names."""
        paths = {weight.path for weight in self.weights if weight.name in names}
        return replace(self, weights=tuple(weight for weight in self.weights if weight.path in paths))

    def to_json(self) -> dict[str, Any]:
        """As `variant.json` holds it."""
        told = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "weights"}
        return told | {"weights": [to_json(weight) for weight in self.weights]}

    @classmethod
    def from_json(cls, data: Any) -> Base:
        """Of what a stranger wrote. Raises InvalidArgument for unknown fields and wrong kinds."""
        return from_json(cls, data, "base")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything but the deltas and hooks. All of it is JSON; name, texts and reports are not in the variant's hash."""

    name: str = ""
    base: Base = Base()
    method: str = ""
    """How it was made: rome, leace, lora, compose, …"""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """All of the method's: {"layer": 4, "ridge": 0.1}."""
    description: str = ""
    licence: str = ""
    tags: tuple[str, ...] = ()
    made_of: tuple[Mapping[str, Any], ...] = ()
    """Parents: {"hash": …, "name": …, "scale": …}, or {"circuit": id}."""
    circuit: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """id and hash of the circuit that chose the weights, if one did."""
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """sha256 and count of records, task names, seeds; no texts."""
    norms: Mapping[str, Mapping[str, float]] = field(default_factory=dict[str, Mapping[str, float]])
    """Weight → rank, norm, relative_norm (to ‖W‖_F), singular (largest of ΔW), base_singular (of W)."""
    metrics: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What was measured when it was made, with intervals."""
    made: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """UTC time, versions, backend, device, user as the maker gives it."""
    reports: Mapping[str, str] = field(default_factory=dict[str, str])
    """File name → SHA-256 of risk and validation reports."""

    def __post_init__(self) -> None:
        if self.name:
            checked_name(self.name)
        object.__setattr__(self, "tags", tuple(self.tags))
        object.__setattr__(self, "made_of", tuple(self.made_of))
        jsonable({one.name: getattr(self, one.name) for one in fields(self) if one.name != "base"}, "the manifest")

    def to_json(self) -> dict[str, Any]:
        """As `variant.json` holds it."""
        told = {
            one.name: getattr(self, one.name) for one in fields(self) if one.name not in ("base", "method", "options")
        }
        told["base"] = self.base.to_json()
        told["method"] = {"name": self.method, "options": self.options}
        return json.loads(json.dumps(told))

    @classmethod
    def from_json(cls, data: Any) -> Manifest:
        """Of what a stranger wrote. Raises InvalidArgument for unknown fields and wrong kinds."""
        given = dict(_object(data, "the manifest"))
        method = dict(_object(given.pop("method", {}), "method"))
        given |= {"method": method.pop("name", ""), "options": method.pop("options", {})}
        if method:
            raise InvalidArgument(f"method has unknown fields {sorted(method)[:8]}; it has name and options")
        known = {one.name: one for one in fields(cls)}
        if unknown := sorted(set(given) - set(known)):
            raise InvalidArgument(f"the manifest has unknown fields {unknown[:8]}; it has {', '.join(known)}")
        given["base"] = Base.from_json(given.get("base", {}))
        for name in ("name", "method", "description", "licence"):
            if not isinstance(given.get(name, ""), str):
                raise InvalidArgument(f"the manifest's {name} is a text, got {str(given[name])[:60]!r}")
        for name in ("options", "circuit", "data", "norms", "metrics", "made", "reports"):
            _object(given.get(name, {}), name)
        for name, kind in (("tags", str), ("made_of", dict)):
            items: Any = given.get(name, [])
            if not isinstance(items, list) or not all(isinstance(item, kind) for item in cast("list[Any]", items)):
                raise InvalidArgument(
                    f"the manifest's {name} is a list of {kind.__name__}, got {str(cast('Any', items))[:60]!r}"
                )
        return cls(**given)


def _object(data: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(data, dict):
        raise InvalidArgument(f"{what} must be an object, got {str(data)[:60]!r}")
    return cast("dict[str, Any]", data)


def jsonable(value: object, what: str) -> str:
    """The value as canonical JSON: keys sorted, no spaces. Raises InvalidArgument for what JSON does not have."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"{what} holds what JSON does not have: {error}") from None
