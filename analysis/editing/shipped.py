"""The facts that ship: capitals that the default model knows, and invented people that no model can know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from ...protos.errors import InvalidArgument
from ..datasets import load_set
from .fact import Fact, Question

__all__ = ["Part", "capital_facts", "synthetic_facts"]

Part = Literal["choose", "judge", "all"]
"""choose: those that a layer is chosen on; judge: those that results are of."""


def capital_facts(part: Part = "judge") -> tuple[Fact, ...]:
    """Capitals that the default model knows, each with the capital of another country as its new target: 8 + 12.

    Neighbours are all other countries, in two halves, one of them held out; so with several facts edited at once those
    about an edited country drop out by themselves.
    """
    data = load_set("facts_capitals").data
    capitals: Mapping[str, str] = data["capitals"]
    return tuple(
        _fact(
            data,
            record,
            tuple(capitals),
            {name: f" {capital}" for name, capital in capitals.items()},
            relation="capital",
            reversals=(Question(data["reversal"].format(new=record["target_new"].strip()), f" {record['subject']}"),),
            hops=(Question(data["hop"].replace("{}", record["subject"]), record["target_new"]),),
        )
        for record in _records(data, part)
    )


def synthetic_facts(part: Part = "judge") -> tuple[Fact, ...]:
    """Invented people and their professions: nothing to replace, so they have no true target. 8 + 32."""
    data = load_set("facts_synthetic").data
    people = tuple(record["subject"] for record in data["records"])
    return tuple(_fact(data, record, people, {}, relation="profession") for record in _records(data, part))


def _records(data: Mapping[str, Any], part: Part) -> list[dict[str, Any]]:
    found = [record for record in data["records"] if part in ("all", record["part"])]
    if not found:
        raise InvalidArgument(f"part {part!r}; allowed: choose, judge, all")
    return found


def _fact(
    data: Mapping[str, Any], record: Mapping[str, Any], names: tuple[str, ...], answers: Mapping[str, str], **more: Any
) -> Fact:
    subject, forms, half = record["subject"], data["forms"], set(data["preserved_half"])
    neighbours = [
        Question(forms[form].replace("{}", name), answers.get(name, ""), name, name not in half)
        for name in names
        if name != subject
        for form in data["preserve_forms" if name in half else "judge_forms"]
    ]
    return Fact(
        subject,
        forms[data["edit_form"]],
        record["target_new"],
        answers.get(subject, ""),
        paraphrases=tuple(forms[form] for form in data["paraphrase_forms"]),
        neighbours=tuple(neighbours),
        generation=tuple(data["generation"]),
        negations=(data["negation"],),
        **more,
    )
