"""What a run learns from: prompts with their answers, as token ids, and texts that are read whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from ...protos.errors import InvalidArgument
from ...protos.model import Message

__all__ = ["TokenExample", "TrainExample", "batch_of", "examples_hash", "read_examples", "to_tokens"]

MAX_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class TrainExample:
    """A prompt and what should follow. With an empty prompt the answer is a text, and every token of it is learned.

    A prompt of messages is written by the tokenizer's chat template; an answer to it ends with the template's end.
    """

    prompt: str | tuple[Message, ...]
    answer: str

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str):
            object.__setattr__(self, "prompt", tuple(self.prompt))
        if not self.prompt and not self.answer:
            raise InvalidArgument("an example holds neither prompt nor answer; give one of them")

    @classmethod
    def chat(cls, question: str, answer: str) -> TrainExample:
        """One question of a user, answered."""
        return cls((Message("user", question),), answer)


@dataclass(frozen=True, slots=True)
class TokenExample:
    """An example as one tokenizer writes it."""

    ids: tuple[int, ...]
    answer_at: int
    """The position of the answer's first token; the prompt's length."""


def to_tokens(tokenizer: Any, example: TrainExample) -> TokenExample:
    """Token ids as the server makes them. Raises InvalidArgument for an example of no token, or of too many."""
    if isinstance(example.prompt, str):
        prompt: list[int] = tokenizer(example.prompt)["input_ids"] if example.prompt else []
    else:
        messages = [{"role": m.role, "content": m.content} for m in example.prompt]
        rendered = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompt = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    answer: list[int] = tokenizer(example.answer, add_special_tokens=not prompt)["input_ids"] if example.answer else []
    if not isinstance(example.prompt, str) and answer and tokenizer.eos_token_id is not None:
        answer = [*answer, int(tokenizer.eos_token_id)]
    ids = (*map(int, prompt), *map(int, answer))
    if len(ids) < 2 or len(ids) > MAX_TOKENS:
        raise InvalidArgument(
            f"an example has {len(ids)} tokens, and 2 … {MAX_TOKENS} are allowed: {_shown(example)}; cut or leave it out"
        )
    return TokenExample(ids, len(prompt))


def batch_of(examples: Sequence[TokenExample], device: str = "cpu") -> dict[str, Any]:
    """Tensors of some examples, padded on the right: ids, mask, answer (all [example, pos]), prompt_length [example].

    `answer` is True at tokens that are to be predicted: the answer's, without a text's very first.
    """
    torch: Any = import_module("torch")
    longest = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    mask, answer = torch.zeros_like(ids), torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, example in enumerate(examples):
        n = len(example.ids)
        ids[row, :n] = torch.tensor(example.ids)
        mask[row, :n] = 1
        answer[row, max(1, example.answer_at) : n] = True
    lengths = torch.tensor([example.answer_at or len(example.ids) for example in examples])
    tensors = {"ids": ids, "mask": mask, "answer": answer, "prompt_length": lengths}
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def examples_hash(examples: Sequence[TrainExample]) -> str:
    """SHA-256 over the texts, in order."""
    digest = sha256()
    for example in examples:
        prompt = example.prompt if isinstance(example.prompt, str) else [[m.role, m.content] for m in example.prompt]
        digest.update(json.dumps([prompt, example.answer], ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def read_examples(path: str | Path) -> tuple[TrainExample, ...]:
    """A file of JSON lines: {"prompt": …, "answer": …}, {"messages": […], "answer": …} or {"text": …}.

    Raises InvalidArgument with the line that is none.
    """
    found: list[TrainExample] = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"cannot read examples from {path}: {error}") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(_example(json.loads(line)))
            except (ValueError, KeyError, TypeError, InvalidArgument) as error:
                raise InvalidArgument(
                    f'{path}, line {number}: {error}; a line is {{"prompt": "…", "answer": "…"}}, '
                    '{"messages": […], "answer": "…"} or {"text": "…"}'
                ) from None
    if not found:
        raise InvalidArgument(f"{path} holds no example")
    return tuple(found)


def _example(data: Any) -> TrainExample:
    if not isinstance(data, Mapping):
        raise TypeError(f"a {type(data).__name__}")
    line = cast("Mapping[str, Any]", data)
    keys = set(line)
    if keys == {"text"}:
        return TrainExample("", str(line["text"]))
    if keys == {"messages", "answer"}:
        messages = tuple(Message(str(m["role"]), m["content"]) for m in line["messages"])
        return TrainExample(messages, str(line["answer"]))
    if keys == {"prompt", "answer"}:
        return TrainExample(str(line["prompt"]), str(line["answer"]))
    raise KeyError(f"fields {sorted(keys)}")


def _shown(example: TrainExample) -> str:
    prompt = example.prompt if isinstance(example.prompt, str) else " / ".join(m.content for m in example.prompt)
    return repr(f"{prompt}{example.answer}"[:60])
