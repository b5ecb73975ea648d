"""The shipped tasks mean what they say, judged from the texts alone."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable

import pytest

from probewire.analysis.tasks import Example, Task, agreement, capitals, greater_than, ioi
from probewire.analysis.tasks.data import read, render
from probewire.protos.errors import InvalidArgument

SHIPPED: list[Callable[..., Task]] = [ioi, greater_than, agreement, capitals]


def role(example: Example, name: str) -> str:
    start, stop = example.roles[name]
    return example.clean[start:stop]


@pytest.mark.parametrize("make", SHIPPED)
def test_examples_are_distinct_reproducible_and_as_many_as_asked(make: Callable[..., Task]) -> None:
    task = make(60, seed=3)
    assert len(task) == 60
    assert len({(e.clean, e.corrupt, e.correct) for e in task.examples}) == 60
    assert make(60, seed=3) == task
    assert make(60, seed=4) != task
    assert all(role(example, "end") == example.clean[-1] for example in task.examples)
    for n in (0, 10**6):
        with pytest.raises(InvalidArgument, match="n must be in 1 …"):
            make(n)


@pytest.mark.parametrize("make", SHIPPED)
def test_no_template_ends_in_a_space(make: Callable[..., Task]) -> None:
    for example in make(100).examples:
        for text in (example.clean, example.corrupt):
            assert text == text.strip()
            assert "{" not in text
            assert "  " not in text


def test_ioi_names() -> None:
    names = set(read("ioi")["names"])
    for example in ioi(200).examples:
        found = Counter(word for word in re.findall(r"\w+", example.clean) if word in names)
        (io,), (subject,) = example.correct, example.wrong
        assert found == {io.strip(): 1, subject.strip(): 2}
        swapped = Counter(word for word in re.findall(r"\w+", example.corrupt) if word in names)
        assert swapped == {io.strip(): 2, subject.strip(): 1}
        assert (role(example, "io"), role(example, "s1"), role(example, "s2")) == (io[1:], subject[1:], subject[1:])
        first = example.roles["io"] < example.roles["s1"]
        assert example.labels["order"] == ("ABBA" if first else "BABA")
        assert example.roles["s1"] < example.roles["s2"]


def test_ioi_with_another_subject() -> None:
    names = set(read("ioi")["names"])
    for example in ioi(40, corrupt="other").examples:
        found = Counter(word for word in re.findall(r"\w+", example.corrupt) if word in names)
        assert sorted(found.values()) == [1, 1, 1]
        assert found[example.correct[0].strip()] == found[example.wrong[0].strip()] == 1
    with pytest.raises(InvalidArgument, match='corrupt is "swap" or "other"'):
        ioi(corrupt="shuffle")


def test_ioi_takes_turns() -> None:
    templates = range(len(read("ioi")["templates"]))
    cells = Counter((e.labels["order"], e.labels["template"]) for e in ioi(2 * 2 * len(templates)).examples)
    assert cells == dict.fromkeys(itertools.product(("ABBA", "BABA"), map(str, templates)), 2)


def test_greater_than_by_every_ending() -> None:
    """Each answer, completed in every way, is a year after (or not after) the start."""
    for example in greater_than(200).examples:
        start = int(role(example, "start"))
        century = example.clean[-2:]
        assert f"{century}{start:02}" in example.clean
        assert f"{century}01" in example.corrupt
        if example.labels["digits"] == "2":
            assert sorted((*example.correct, *example.wrong)) == [f"{end:02}" for end in range(100)]
            assert all((int(end) > start) == (end in example.correct) for end in (*example.correct, *example.wrong))
            continue
        for tens in map(str, range(10)):
            later = {int(f"{tens}{unit}") > start for unit in range(10)}
            sure = tens != str(start // 10)
            assert (tens in example.correct) == (sure and later == {True})
            assert (tens in example.wrong) == (sure and later == {False})


def test_agreement() -> None:
    forms = {word: number for pair in read("agreement")["subjects"] for number, word in enumerate(pair)}
    task = agreement(200)
    for example in task.examples:
        number = forms[role(example, "subject")]
        assert example.labels["number"] == ("singular", "plural")[number]
        assert example.correct == ((" is", " was", " has"), (" are", " were", " have"))[number]
        assert example.wrong == ((" is", " was", " has"), (" are", " were", " have"))[1 - number]
        start, stop = example.roles["subject"]
        other = next(
            word
            for pair in read("agreement")["subjects"]
            for word in pair
            if role(example, "subject") in pair and forms[word] != number
        )
        assert example.corrupt == example.clean[:start] + other + example.clean[stop:]
    assert Counter((e.labels["number"], e.labels["attractor"]) for e in task.examples) == dict.fromkeys(
        itertools.product(("singular", "plural"), repeat=2), 50
    )


def test_capitals() -> None:
    known = read("capitals")["capitals"]
    for example in capitals(100).examples:
        country = role(example, "country")
        other = next(name for name in known if name in example.corrupt)
        assert country == example.labels["country"] != other
        assert example.corrupt == example.clean.replace(country, other)
        assert (example.correct, example.wrong) == ((f" {known[country]}",), (f" {known[other]}",))


def test_a_role_named_twice_is_where_it_is_named_last() -> None:
    text, spans = render("{a} or {b} or {a}.", {"a": "xx", "b": "y"})
    assert text == "xx or y or xx."
    assert spans == {"a": (11, 13), "b": (6, 7)}


def test_where_chooses_by_label() -> None:
    task = ioi(40)
    chosen = task.where(order="ABBA", template="3")
    assert {(e.labels["order"], e.labels["template"]) for e in chosen.examples} == {("ABBA", "3")}
    assert len(chosen) == 2
    with pytest.raises(InvalidArgument, match=r"no example of task 'ioi' has the labels .*order: ABBA, BABA"):
        task.where(order="AABB")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"corrupt": "a b"}, "are the same text"),
        ({"clean": ""}, "the clean prompt is empty"),
        ({"wrong": (" x",)}, r"the answers \[' x'\] are both correct and wrong"),
        ({"correct": ()}, "need at least one text"),
        ({"correct": " x"}, "are a tuple of texts"),
        ({"roles": {"s": (2, 9)}}, r"role 's' has the span \[2, 9\]; the clean prompt has 3 characters"),
    ],
)
def test_a_bad_example_is_refused(change: dict[str, object], problem: str) -> None:
    good = {"clean": "a b", "corrupt": "a c", "correct": (" x",), "wrong": (" y",)}
    Example(**good)
    with pytest.raises(InvalidArgument, match=problem):
        Example(**(good | change))


def test_a_task_needs_a_name_and_examples() -> None:
    with pytest.raises(InvalidArgument, match="has no examples"):
        Task("empty", ())
    with pytest.raises(InvalidArgument, match="a task's name has letters"):
        Task("../x", ioi(1).examples)
