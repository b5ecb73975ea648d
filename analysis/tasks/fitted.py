"""A task fitted to a model's tokenizer: token ids, where each role's tokens are, and targets ready to measure."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from ...clients import Client, Input
from ...protos.errors import InvalidArgument
from ...protos.metrics import LogitDifference, Target
from ...protos.model import Tokenized
from .task import Example, Roles, Task

__all__ = ["FittedExample", "FittedTask", "Form", "fit"]

Form = Literal["clean", "corrupt"]

LENGTHS = "clean and corrupt differ in number of tokens"
NOT_SINGLE = "an answer is not one token after the prompt"
NOT_ALIGNED = "a role's text is not found among the tokens"


@dataclass(frozen=True, slots=True)
class FittedExample:
    """One example as one tokenizer writes it. Clean and corrupt have the same number of tokens."""

    name: str
    """Of its input in every request: its index in the task as fitted."""
    clean: tuple[int, ...]
    """Token ids; special tokens included."""
    corrupt: tuple[int, ...]
    clean_tokens: tuple[str, ...]
    """Each token as text."""
    corrupt_tokens: tuple[str, ...]
    correct: tuple[int, ...]
    """Token ids."""
    wrong: tuple[int, ...]
    roles: Mapping[str, tuple[int, ...]]
    """Role → its token positions, the same in both forms where only single tokens differ."""
    example: Example

    @property
    def metric(self) -> LogitDifference:
        """Mean logit of the correct answers minus that of the wrong ones, at the last position."""
        return LogitDifference(self.correct, self.wrong)


@dataclass(frozen=True, slots=True)
class FittedTask:
    """Examples ready for one model. Every method keeps each example's name, so results line up."""

    name: str
    examples: tuple[FittedExample, ...]
    dropped: Mapping[str, int] = field(default_factory=dict[str, int])
    """Why examples were left out → how many of those looked at."""
    model: str = ""
    """As `fit` was given it; what runs the task asks for the same."""

    @property
    def names(self) -> tuple[str, ...]:
        """Of the inputs, in order."""
        return tuple(example.name for example in self.examples)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each example."""
        return tuple(len(example.clean) for example in self.examples)

    @property
    def clean(self) -> dict[str, Input]:
        """Clean prompts by name, as `run`, `gradients` and `sweep` take them."""
        return self.prompts("clean")

    @property
    def corrupt(self) -> dict[str, Input]:
        """Corrupt prompts by name."""
        return self.prompts("corrupt")

    def prompts(self, form: Form) -> dict[str, Input]:
        """The prompts of one form by name."""
        return {e.name: Input(token_ids=e.clean if form == "clean" else e.corrupt, name=e.name) for e in self.examples}

    def source_name(self, name: str) -> str:
        """The name that `pairs` gives to the other form of an example."""
        return f"{name}/source"

    def pairs(self, form: Form = "clean") -> list[Input]:
        """The prompts of one form and, as `source_only` inputs called `source_name(name)`, their other form."""
        other = self.prompts("corrupt" if form == "clean" else "clean")
        sources = [replace(item, name=self.source_name(name), source_only=True) for name, item in other.items()]
        return [*self.prompts(form).values(), *sources]

    @property
    def targets(self) -> list[Target]:
        """One logit difference an input (by name): correct minus wrong, in both forms of the prompt."""
        return [Target(example.metric, (example.name,)) for example in self.examples]

    @property
    def metrics(self) -> list[LogitDifference]:
        """The same logit differences in order, for methods that take prompts and metrics as lists."""
        return [example.metric for example in self.examples]

    def groups(self) -> dict[int, FittedTask]:
        """The examples by their number of tokens, for methods that line positions up."""
        return {n: self._only(e for e in self.examples if len(e.clean) == n) for n in sorted(set(self.lengths))}

    def largest_group(self) -> FittedTask:
        """The examples of the commonest length (the shortest of those, where several tie)."""
        return max(self.groups().values(), key=len)

    def batches(self, size: int) -> list[FittedTask]:
        """The examples in runs of at most `size`: a request takes 64 inputs, sources counted."""
        if size < 1:
            raise InvalidArgument(f"a batch has 1 example or more, got {size}")
        starts = range(0, len(self.examples), size)
        return [self._only(self.examples[start : start + size]) for start in starts]

    def where(self, **labels: str) -> FittedTask:
        """Only the examples with these labels. Raises InvalidArgument when there are none."""
        kept = [e for e in self.examples if all(e.example.labels.get(k) == v for k, v in labels.items())]
        if not kept:
            raise InvalidArgument(f"no fitted example of {self.name!r} has the labels {labels}")
        return self._only(kept)

    def positions(self, role: str) -> dict[str, tuple[int, ...]]:
        """Example name → token positions of a role. Raises InvalidArgument where an example lacks it."""
        lacking = [e.name for e in self.examples if role not in e.roles]
        if lacking:
            known = sorted({name for e in self.examples for name in e.roles})
            raise InvalidArgument(
                f"the examples {lacking[:5]} have no role {role!r}; roles: {', '.join(known) or 'none'}"
            )
        return {e.name: e.roles[role] for e in self.examples}

    def _only(self, examples: Iterator[FittedExample] | tuple[FittedExample, ...] | list[FittedExample]) -> FittedTask:
        return replace(self, examples=tuple(examples))

    def __len__(self) -> int:
        return len(self.examples)

    def __repr__(self) -> str:
        lost = "".join(f"; dropped {count}: {reason}" for reason, count in self.dropped.items())
        low, high = min(self.lengths), max(self.lengths)
        tokens = f"{low}" if low == high else f"{low} to {high}"
        return f"FittedTask({self.name!r}, {len(self)} examples of {tokens} tokens{lost})"


def fit(task: Task, client: Client, n: int | None = None, *, seed: int = 0, model: str = "") -> FittedTask:
    """Up to `n` examples of a task that a model's tokenizer can write, drawn in an order that `seed` sets (None: all).

    Left out, and counted by reason in `dropped`: examples whose prompts differ in number of tokens, or with an answer
    that is not exactly one token where it stands (prompt and answer are tokenised together, as merges may cross).
    Raises InvalidArgument when fewer than `n` fit, or none does.
    """
    if n is not None and n < 1:
        raise InvalidArgument(f"n must be 1 or more (None: all that fit), got {n}")
    order = list(task.examples)
    random.Random(seed).shuffle(order)
    kept: list[FittedExample] = []
    dropped: Counter[str] = Counter()
    for example in order:
        if len(kept) == n:
            break
        found = _fit_example(example, str(len(kept)), client, model)
        if isinstance(found, str):
            dropped[found] += 1
        else:
            kept.append(found)
    if not kept or (n is not None and len(kept) < n):
        reasons = "; ".join(f"{count} dropped: {reason}" for reason, count in dropped.items())
        fix = f"ask for n={len(kept)}" if kept else "use words that this tokenizer writes as one token"
        raise InvalidArgument(
            f"{len(kept)} of the {len(order)} examples of task {task.name!r} fit this tokenizer"
            f"{'' if n is None else f', not the {n} asked for'} ({reasons or 'none dropped'}); {fix}"
        )
    return FittedTask(task.name, tuple(kept), dict(dropped), model)


def _fit_example(example: Example, name: str, client: Client, model: str) -> FittedExample | str:
    """The example in token ids, or why it is left out."""
    clean, corrupt = (client.tokenize(text, model=model) for text in (example.clean, example.corrupt))
    if len(clean.token_ids) != len(corrupt.token_ids):
        return LENGTHS
    answers: dict[str, int] = {}
    for answer in (*example.correct, *example.wrong):
        ids = client.tokenize(example.clean + answer, model=model).token_ids
        if len(ids) != len(clean.token_ids) + 1 or ids[:-1] != clean.token_ids:
            return NOT_SINGLE
        answers[answer] = ids[-1]
    roles = _locate(example.roles, example.clean, clean)
    if roles is None:
        return NOT_ALIGNED
    return FittedExample(
        name,
        clean.token_ids,
        corrupt.token_ids,
        clean.tokens,
        corrupt.tokens,
        tuple(answers[answer] for answer in example.correct),
        tuple(answers[answer] for answer in example.wrong),
        roles,
        example,
    )


def _locate(roles: Roles, text: str, tokenized: Tokenized) -> dict[str, tuple[int, ...]] | None:
    """Positions of the tokens that overlap each span of characters; None where the tokens do not spell the text."""
    if not roles:
        return {}
    start = "".join(tokenized.tokens).find(text)  # special tokens come first
    if start < 0:
        return None
    bounds: list[tuple[int, int]] = []
    at = -start
    for token in tokenized.tokens:
        bounds.append((at, at + len(token)))
        at += len(token)
    return {
        role: tuple(i for i, (low, high) in enumerate(bounds) if low < stop and begin < high)
        for role, (begin, stop) in roles.items()
    }
