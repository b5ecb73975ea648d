"""A fact as a value: who it is about, how it is asked, what shall be answered, and what must stay as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...protos.errors import InvalidArgument

__all__ = ["Fact", "Question", "blank"]


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt and how it goes on. `subject`, where given, is the part of the prompt that it is about."""

    prompt: str
    answer: str = ""
    """With its leading space where the tokenizer needs one: " Paris"; empty of a neighbour whose answer is not known."""
    subject: str = ""
    held_out: bool = True
    """Of a neighbour: judged. Others may be preserved while the change is made."""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise InvalidArgument("a question needs a prompt")
        if self.subject and self.prompt.count(self.subject) < 1:
            raise InvalidArgument(f"the subject {self.subject!r} is not in the prompt {self.prompt!r}")


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that a model says, and what it shall say: `Fact("France", "The capital of {} is", " Rome", " Paris")`."""

    subject: str
    prompt: str
    """With {} once, where the subject stands."""
    target_new: str
    """With its leading space where the tokenizer needs one."""
    target_true: str = ""
    """What the model says so far; empty: it does not know (injection)."""
    paraphrases: tuple[str, ...] = ()
    """Whole prompts with the same answer; {} stands for the subject in them too."""
    neighbours: tuple[Question, ...] = ()
    """What is alike and must stay: the capitals of other countries. Those held out are judged, the others preserved."""
    generation: tuple[str, ...] = ()
    """Beginnings that talk of the subject."""
    reversals: tuple[Question, ...] = ()
    """The fact asked from the other end, as it would then be; edits hardly ever reach these."""
    hops: tuple[Question, ...] = ()
    """What would follow from it."""
    negations: tuple[str, ...] = ()
    """Prompts that the new answer must not follow: "The capital of {} is not"."""
    relation: str = ""

    def __post_init__(self) -> None:
        if not self.subject.strip() or self.prompt.count("{}") != 1:
            raise InvalidArgument(
                f"a fact needs a subject, and {{}} once in its prompt where the subject stands; got {self.subject!r} and "
                f"{self.prompt!r}"
            )
        if not self.target_new or self.target_new == self.target_true:
            raise InvalidArgument(
                f"the fact about {self.subject!r} needs a new target other than the true one, got {self.target_new!r}"
            )
        for name in ("paraphrases", "generation", "negations"):
            object.__setattr__(self, name, _filled(getattr(self, name), self.subject))
        for name in ("neighbours", "reversals", "hops"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def asked(self) -> str:
        """The prompt with the subject in it."""
        return self.prompt.replace("{}", self.subject)

    @property
    def preserved(self) -> tuple[Question, ...]:
        """Neighbours whose keys a change may be told to leave alone."""
        return tuple(one for one in self.neighbours if not one.held_out)

    @property
    def judged(self) -> tuple[Question, ...]:
        """Neighbours that no change has seen."""
        return tuple(one for one in self.neighbours if one.held_out)

    def __str__(self) -> str:
        return f"{self.asked}{self.target_new}"


def blank(prompt: str, subject: str) -> int:
    """The character behind the subject in a prompt with {}, filled in."""
    return prompt.index("{}") + len(subject)


def _filled(texts: Sequence[str] | str, subject: str) -> tuple[str, ...]:
    listed = (texts,) if isinstance(texts, str) else tuple(texts)
    return tuple(text.replace("{}", subject) for text in listed)
