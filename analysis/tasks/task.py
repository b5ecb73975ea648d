"""A behaviour to study: examples that each have a clean prompt, a corrupt one, and the answers that tell them apart."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from ...protos.errors import InvalidArgument

__all__ = ["Example", "Roles", "Task"]

Roles = Mapping[str, tuple[int, int]]
"""What a part of the prompt is there for → its half-open span of characters in the clean prompt."""


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt in two forms. Answers are what may follow directly, leading space included."""

    clean: str
    corrupt: str
    """The same prompt with the one thing changed that the answer hangs on."""
    correct: tuple[str, ...]
    """Right after the clean prompt, and not after the corrupt one."""
    wrong: tuple[str, ...]
    roles: Roles = field(default_factory=dict[str, tuple[int, int]], hash=False)
    """A part of the clean prompt by what it does: {"subject": (5, 9)}; the token at it is found once a task is fitted."""
    labels: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    """What sets examples apart, to choose by: {"order": "ABBA"}."""

    def __post_init__(self) -> None:
        for name in ("clean", "corrupt"):
            if not getattr(self, name):
                raise InvalidArgument(f"the {name} prompt is empty; give a text")
        if self.clean == self.corrupt:
            raise InvalidArgument(f"the clean and the corrupt prompt are the same text: {self.clean!r}")
        for name in ("correct", "wrong"):
            object.__setattr__(self, name, _answers(getattr(self, name), name))
        if shared := set(self.correct) & set(self.wrong):
            raise InvalidArgument(f"the answers {sorted(shared)} are both correct and wrong; leave them out of one")
        for role, span in self.roles.items():
            if not 0 <= span[0] < span[1] <= len(self.clean):
                raise InvalidArgument(
                    f"role {role!r} has the span {list(span)}; the clean prompt has {len(self.clean)} characters "
                    "(half-open, at least one character)"
                )
        for name in ("roles", "labels"):
            object.__setattr__(self, name, dict(getattr(self, name)))


def _answers(value: Sequence[str], what: str) -> tuple[str, ...]:
    if isinstance(value, str):
        raise InvalidArgument(f"the {what} answers are a tuple of texts, got the text {value!r}; write ({value!r},)")
    found = tuple(dict.fromkeys(value))
    if not found or not all(found):
        raise InvalidArgument(f"the {what} answers need at least one text and no empty one, got {list(value)}")
    return found


@dataclass(frozen=True, slots=True)
class Task:
    """Examples of one behaviour, before any tokenizer: `fit` (analysis/tasks/fitted.py) makes them ready for a model."""

    name: str
    examples: tuple[Example, ...]
    description: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", tuple(self.examples))
        if not re.fullmatch(r"[\w .-]+", self.name):
            raise InvalidArgument(f"a task's name has letters, digits, spaces, dots and dashes, got {self.name!r}")
        if not self.examples:
            raise InvalidArgument(f"task {self.name!r} has no examples")

    def where(self, **labels: str) -> Task:
        """Only the examples with these labels. Raises InvalidArgument when there are none, and says which labels exist."""
        kept = tuple(e for e in self.examples if all(e.labels.get(name) == value for name, value in labels.items()))
        if not kept:
            known = {name: sorted({e.labels[name] for e in self.examples if name in e.labels}) for name in self.labels}
            shown = "; ".join(f"{name}: {', '.join(values[:12])}" for name, values in known.items()) or "none"
            raise InvalidArgument(f"no example of task {self.name!r} has the labels {labels}; there are: {shown}")
        return replace(self, examples=kept)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels that occur."""
        return tuple(dict.fromkeys(name for example in self.examples for name in example.labels))

    def __len__(self) -> int:
        return len(self.examples)

    def __repr__(self) -> str:
        return f"Task({self.name!r}, {len(self.examples)} examples, for example {self.examples[0].clean!r})"
