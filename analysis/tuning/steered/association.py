"""An association of a model as prompts by role, and how strong it is: what steered tuning is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....protos.errors import InvalidArgument
from ...datasets import load_set
from ..base import Base
from ..examples import TokenExample, TrainExample, batch_of, to_tokens

__all__ = ["Association", "Probe", "known_association", "log_probs", "right", "strengths"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt, its answer, and answers that would do for siblings of the subject."""

    prompt: str
    answer: str
    others: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "others", tuple(other for other in self.others if other != self.answer))
        if not self.prompt or not self.answer or not self.others:
            raise InvalidArgument("a probe has a prompt, an answer and at least one other answer")


@dataclass(frozen=True, slots=True)
class Association:
    """Texts that state it, and probes by role; templates of train, choose and report are apart."""

    train: tuple[TrainExample, ...]
    choose: Mapping[str, tuple[Probe, ...]]
    """target and control, for choosing a configuration."""
    report: Mapping[str, tuple[Probe, ...]]
    """target, control, near, reverse, for its figures, once."""
    indirect: tuple[str, ...] = ()
    """Prompts under which subject or answer would come up by themselves."""
    neutral: tuple[str, ...] = ()


def known_association() -> Association:
    """France and Paris, of the set `association`: siblings are six other countries."""
    data = load_set("association").data["known"]
    siblings: list[Mapping[str, str]] = data["siblings"]
    cities = (data["answer"], *(sibling["answer"] for sibling in siblings))
    lands = tuple(f" {land}" for land in (data["subject"], *(sibling["subject"] for sibling in siblings)))

    def probes(templates: Sequence[str]) -> dict[str, tuple[Probe, ...]]:
        return {
            "target": tuple(Probe(t.format(data["subject"]), data["answer"], cities) for t in templates),
            "control": tuple(Probe(t.format(s["subject"]), s["answer"], cities) for t in templates for s in siblings),
        }

    near_answers = tuple(dict.fromkeys([*(item["answer"] for item in data["near"]), " Italian", " Asia", " German"]))
    report = probes(data["report"]) | {
        "near": tuple(Probe(item["prompt"], item["answer"], near_answers) for item in data["near"]),
        "reverse": tuple(Probe(t.format(data["answer"].strip()), lands[0], lands) for t in data["reverse"]),
    }
    return Association(
        train=tuple(TrainExample(t.format(data["subject"]), data["answer"]) for t in data["train"]),
        choose=probes(data["choose"]),
        report=report,
        indirect=tuple(data["indirect"]),
        neutral=tuple(item["text"] for item in load_set("general").data["texts"]),
    )


def log_probs(base: Base, pairs: Sequence[tuple[str, str]], *, at_once: int = 48, logits: Any = None) -> Any:
    """[pair]: log p(answer | prompt), summed over the answer's tokens; a tensor, with its gradient where one is kept.

    Answers of one token share the forward of their prompt. `logits`: batch → [example, pos, vocabulary], in place of the
    model as it stands.
    """
    torch: Any = import_module("torch")
    tokens = [to_tokens(base.tokenizer, TrainExample(prompt, answer)) for prompt, answer in pairs]
    # A forward serves all answers that are its last token: only what stands before that is read.
    sequences: dict[tuple[int, ...], int] = {}
    of: list[int] = []
    for example in tokens:
        key = example.ids[:-1] if len(example.ids) - example.answer_at == 1 else example.ids
        of.append(sequences.setdefault(key, len(sequences)))
    listed = [TokenExample(key, 0) for key in sequences]
    device = str(next(base.model.parameters()).device)
    rows: list[Any] = []
    for start in range(0, len(listed), at_once):
        out = (logits or _plain(base))(batch_of(listed[start : start + at_once], device)).log_softmax(-1)
        rows += list(out)
    found: list[Any] = []
    for example, row in zip(tokens, of, strict=True):
        answer = torch.tensor(example.ids[example.answer_at :], device=rows[row].device)
        before = rows[row][example.answer_at - 1 : len(example.ids) - 1]
        found.append(before.gather(-1, answer[:, None]).sum())
    return torch.stack(found)


def strengths(base: Base, probes: Sequence[Probe], *, logits: Any = None) -> Any:
    """[probe]: A = log p(answer) − log mean p(others)."""
    torch: Any = import_module("torch")
    pairs = [(probe.prompt, answer) for probe in probes for answer in (probe.answer, *probe.others)]
    found = log_probs(base, pairs, logits=logits)
    result: list[Any] = []
    at = 0
    for probe in probes:
        n = len(probe.others)
        result.append(found[at] - (found[at + 1 : at + 1 + n].logsumexp(0) - float(np.log(n))))
        at += n + 1
    return torch.stack(result)


def right(base: Base, probes: Sequence[Probe]) -> NDArray[np.bool_]:
    """[probe]: whether the first token of the answer is the likeliest of all."""
    torch: Any = import_module("torch")
    tokens = [TokenExample(to_tokens(base.tokenizer, TrainExample("", p.prompt)).ids, 0) for p in probes]
    firsts = [int(base.tokenizer(p.answer, add_special_tokens=False)["input_ids"][0]) for p in probes]
    found: list[bool] = []
    for start in range(0, len(tokens), 48):
        some = tokens[start : start + 48]
        batch = batch_of(some, str(next(base.model.parameters()).device))
        with torch.no_grad():
            out = _plain(base)(batch)
        ends = [len(example.ids) - 1 for example in some]
        found += [int(out[row, end].argmax()) == firsts[start + row] for row, end in enumerate(ends)]
    return np.array(found)


def _plain(base: Base) -> Any:
    def logits(batch: Mapping[str, Any]) -> Any:
        return base.model(input_ids=batch["ids"], attention_mask=batch["mask"]).logits

    return logits
