"""What is said about a circuit beside its units: name, claims, task, dependencies and the checks it has been through."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

from ...protos.errors import InvalidArgument

__all__ = ["Card", "Claim", "Edge"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_VERSION = re.compile(r"\d+(\.\d+){0,2}")
_CATEGORY = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}(/[a-z0-9][a-z0-9_-]{0,31}){0,3}")


@dataclass(frozen=True, slots=True)
class Edge:
    """One sender whose output a receiver reads: "z.3 head 2" → "mlp_resid.5", as an EdgeSpace names them."""

    sender: str
    receiver: str
    score: float = 0.0

    @property
    def name(self) -> str:
        """As claims write it: "mlp_out.3 → attn_resid.5"."""
        return f"{self.sender} → {self.receiver}"


@dataclass(frozen=True, slots=True)
class Claim:
    """ "z.9 head 6 is a name mover, score ≥ .3": something that can be measured again."""

    unit: str
    """As `Unit.name` or `Edge.name` writes it."""
    role: str
    """In words."""
    measure: str
    """What measures it: previous_token, duplicate_token, induction (0 … 1), name_mover (logits), necessity (0 … 1)."""
    min: float


@dataclass(frozen=True, slots=True)
class Card:
    """All of a circuit that its units do not say. Everything may be left empty outside a library."""

    name: str = ""
    """Of the circuit in a library: letters, digits, - _ and dots."""
    version: str = "1"
    """Of the circuit under this name: 1, 1.2 or 1.2.3."""
    category: str = ""
    """A path of at most four parts in small letters: "syntax/agreement"."""
    description: str = ""
    tags: tuple[str, ...] = ()
    authors: tuple[str, ...] = ()
    licence: str = ""
    references: tuple[str, ...] = ()
    task: Mapping[str, Any] | None = None
    """name, hash, n and, where they may be given away, the examples."""
    claims: tuple[Claim, ...] = ()
    requires: tuple[str, ...] = ()
    """Ids of circuits that it does not work without."""
    conflicts: tuple[str, ...] = ()
    """Ids of circuits that it must not be composed with."""
    weights: str = ""
    """Hash of a variant that implements or removes it."""
    validation: tuple[Mapping[str, Any], ...] = ()
    """Reports of `circuit_qa`, oldest first: time, level, figures, sha256 of the report, who, backend, model_hash."""
    supersedes: str = ""
    """Id of the circuit that this one replaces."""

    def __post_init__(self) -> None:
        for key in ("tags", "authors", "references", "claims", "requires", "conflicts", "validation"):
            object.__setattr__(self, key, tuple(getattr(self, key)))
        rules = (
            ("name", _NAME, "letters, digits, - _ and dots, at most 64, the first a letter or digit"),
            ("category", _CATEGORY, "at most four parts of small letters, digits, - and _, parted by /"),
        )
        for key, rule, words in rules:
            if (value := getattr(self, key)) and not rule.fullmatch(value):
                raise InvalidArgument(f"a circuit's {key} has {words}; got {value!r}")
        if not _VERSION.fullmatch(self.version):
            raise InvalidArgument(f"a circuit's version is 1, 1.2 or 1.2.3, got {self.version!r}")

    @property
    def level(self) -> int:
        """The highest level of checks passed so far; 0: none recorded."""
        return max((int(entry.get("level", 0)) for entry in self.validation), default=0)

    @property
    def version_key(self) -> tuple[int, ...]:
        """What versions are ordered by: 1.10 comes after 1.9."""
        return tuple(int(part) for part in self.version.split("."))

    def to_json(self) -> dict[str, Any]:
        """JSON data; what is empty is left out."""
        return {key: value for key, value in asdict(self).items() if value not in ("", (), None)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Card:
        """What `to_json` gave. Raises InvalidArgument for a field that there is none of."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise InvalidArgument(f"a circuit's card has the unknown {unknown}; it may have {', '.join(sorted(known))}")
        found = dict(data)
        for key in ("tags", "authors", "references", "requires", "conflicts"):
            if key in found and not _texts(found[key]):
                raise InvalidArgument(f"a circuit's {key} are a list of texts, got {found[key]!r}")
        found["claims"] = tuple(_claim(entry) for entry in found.get("claims", ()))
        return cls(**found)


def _texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in cast("list[Any]", value))


def _claim(entry: Any) -> Claim:
    try:
        claim = Claim(**entry)
        return Claim(str(claim.unit), str(claim.role), str(claim.measure), float(claim.min))
    except (TypeError, ValueError) as error:
        raise InvalidArgument(f"a claim has unit, role, measure and min, got {entry!r}") from error
