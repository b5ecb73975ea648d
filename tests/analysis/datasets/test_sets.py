"""Every set that ships says what it is and where it is from, and is small."""

from __future__ import annotations

from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest

from probewire.analysis.datasets import load_set, set_names, sets as module
from probewire.protos.errors import NotFound

MOST_BYTES = 60_000


@pytest.mark.parametrize("name", set_names())
def test_a_set_says_what_it_is(name: str) -> None:
    found = load_set(name)
    raw = (Path(module.__file__).parent / f"{name}.json").read_bytes()
    assert found.name == name
    assert found.description
    assert "Apache-2.0" in found.provenance
    assert found.data
    assert len(raw) <= MOST_BYTES
    assert found.sha256 == sha256(raw).hexdigest()


def test_an_unknown_name_is_answered_with_those_there_are() -> None:
    with pytest.raises(NotFound, match=r"'nothing'.*general"):
        load_set("nothing")


def test_general_has_64_beginnings_no_two_alike() -> None:
    texts = load_set("general").data["texts"]
    assert len({item["text"] for item in texts}) == 64
    assert min(Counter(item["kind"] for item in texts).values()) >= 8


def test_topics_have_halves_that_share_no_question() -> None:
    data = load_set("topics").data
    assert {topic: [len(half) for half in data[topic].values()] for topic in data} == {
        "chess": [24, 24],
        "other": [24, 24],
        "sailing": [12, 12],
    }
    questions = [question for topic in data.values() for half in topic.values() for question in half]
    assert len(set(questions)) == len(questions)
    assert not any("chess" in question.lower() for half in data["other"].values() for question in half)
