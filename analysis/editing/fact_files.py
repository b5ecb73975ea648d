"""Facts from files: our own JSON lines, CounterFact's records and zsRE's, told apart by their fields."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, cast

from ...protos.errors import InvalidArgument, NotFound
from .fact import Fact, Question

__all__ = ["load_facts", "save_facts"]

_QUESTIONS = ("neighbours", "reversals", "hops")
_TEXTS = ("paraphrases", "generation", "negations")


def load_facts(path: str | Path, *, limit: int | None = None) -> tuple[Fact, ...]:
    """Facts from a .jsonl file (one a line) or a .json file (a list).

    Each is ours (the fields of `Fact`), CounterFact's (`requested_rewrite`; Meng et al. 2022) or zsRE's (`src`, `subject`,
    `answers`; as MEMIT's code keeps them). Of the last two, targets get the leading space that their authors' code adds;
    every other neighbour of CounterFact is held out, the rest may be preserved. `limit`: the first so many.
    Raises NotFound for no file, InvalidArgument with the line that is wrong.
    """
    path = Path(path)
    if not path.is_file():
        raise NotFound(f"there is no file {path}")
    found: list[Fact] = []
    for place, record in _records(path):
        if limit is not None and len(found) >= limit:
            break
        try:
            found.append(_fact(record))
        except (InvalidArgument, KeyError, TypeError, AttributeError) as error:
            said = (
                error.message if isinstance(error, InvalidArgument) else f"it lacks {error} or has it of another kind"
            )
            raise InvalidArgument(f"{path}, {place}: {said}") from None
    if not found:
        raise InvalidArgument(f"{path} holds no facts")
    return tuple(found)


def save_facts(facts: Sequence[Fact], path: str | Path) -> Path:
    """Write facts as JSON lines that `load_facts` reads."""
    path = Path(path)
    lines = [json.dumps({k: v for k, v in asdict(fact).items() if v}, ensure_ascii=False) + "\n" for fact in facts]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def _records(path: Path) -> list[tuple[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path} is not UTF-8 text: {error}") from None
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        lines = [(f"line {i}", line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
        return [(place, _parsed(line, path, place)) for place, line in lines]
    whole = _parsed(text, path, "the file")
    if not isinstance(whole, list):
        raise InvalidArgument(f"{path} must hold a list of facts, or be JSON lines (.jsonl)")
    return [(f"fact {i}", item) for i, item in enumerate(cast("list[Any]", whole))]


def _parsed(text: str, path: Path, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"{path}, {place}: not JSON: {error}") from None


def _fact(record: Any) -> Fact:
    if not isinstance(record, Mapping):
        raise InvalidArgument(f"a fact is an object, got {type(record).__name__}")
    given = cast("Mapping[str, Any]", record)
    if "requested_rewrite" in given:
        return _counterfact(given)
    if "src" in given and "answers" in given:
        return _zsre(given)
    return _ours(given)


def _ours(given: Mapping[str, Any]) -> Fact:
    known = [one.name for one in fields(Fact)]
    unknown = [key for key in given if key not in known]
    missing = [key for key in ("subject", "prompt", "target_new") if key not in given]
    if unknown or missing:
        raise InvalidArgument(
            f"a fact has {', '.join(known)}, the first three at least; lacking {missing}, unknown {unknown} (CounterFact's "
            "records have requested_rewrite, zsRE's src and answers)"
        )
    values = dict(given)
    for name in _QUESTIONS:
        values[name] = tuple(Question(**item) for item in given.get(name, ()))
    for name in _TEXTS:
        values[name] = tuple(given.get(name, ()))
    return Fact(**values)


def _counterfact(given: Mapping[str, Any]) -> Fact:
    asked = given["requested_rewrite"]
    true = _spaced(asked["target_true"]["str"])
    neighbours = tuple(
        Question(prompt, true, held_out=index % 2 == 1)
        for index, prompt in enumerate(given.get("neighborhood_prompts", ()))
    )
    return Fact(
        asked["subject"],
        asked["prompt"],
        _spaced(asked["target_new"]["str"]),
        true,
        paraphrases=tuple(given.get("paraphrase_prompts", ())),
        neighbours=neighbours,
        generation=tuple(given.get("generation_prompts", ())),
        relation=asked.get("relation_id", ""),
    )


def _zsre(given: Mapping[str, Any]) -> Fact:
    subject, asked = given["subject"], given["src"]
    if subject not in asked:
        raise InvalidArgument(f"the subject {subject!r} is not in src {asked!r}")
    local = str(given.get("loc", "")).removeprefix("nq question: ")
    neighbours = (Question(f"{local}?", _spaced(str(given["loc_ans"]))),) if local and given.get("loc_ans") else ()
    return Fact(
        subject,
        asked.replace(subject, "{}", 1),
        _spaced(given["answers"][0]),
        paraphrases=(given["rephrase"],) if given.get("rephrase") else (),
        neighbours=neighbours,
        relation="zsre",
    )


def _spaced(answer: str) -> str:
    return answer if answer[:1].isspace() else f" {answer}"
