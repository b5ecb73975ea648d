"""Tasks on a real tokenizer: what is kept, what is dropped and why, and where roles lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from probewire.analysis.tasks import Example, Task, agreement, capitals, fit, greater_than, ioi
from probewire.analysis.tasks.fitted import LENGTHS, NOT_SINGLE
from probewire.clients import Client
from probewire.protos.errors import InvalidArgument
from probewire.protos.metrics import LogitDifference

LETTERS = Task(
    "letters",
    (
        Example("the cat sat on a", "the dog sat on a", ("b",), ("c",), {"subject": (4, 7)}),
        Example("the cat sat on a", "the bird sat on a", ("b",), ("c",)),
        Example("one two three x", "one two seven x", ("y",), ("zz", "w")),
        Example("one two three y", "one two seven y", ("y",), ("z", "w"), labels={"kind": "number"}),
    ),
)


@pytest.mark.parametrize("make", [ioi, greater_than, agreement, capitals])
def test_every_shipped_task_fits_the_default_model(make: Callable[[], Task], default_client: Client) -> None:
    fitted = fit(make(), default_client, 12)
    assert len(fitted) == 12
    for example in fitted.examples:
        assert default_client.tokenize(list(example.clean)).text == example.example.clean
        assert len(example.clean) == len(example.corrupt)
        for ids, texts in ((example.correct, example.example.correct), (example.wrong, example.example.wrong)):
            assert [default_client.tokenize([i]).text for i in ids] == list(texts)
        for name, positions in example.roles.items():
            start, stop = example.example.roles[name]
            covered = "".join(example.clean_tokens[i] for i in positions)
            assert example.example.clean[start:stop] in covered
            assert len(positions) == 1 or name == "start"
        assert example.roles["end"] == (len(example.clean) - 1,)


def test_single_digits_leave_the_pairs_of_digits_out(default_client: Client) -> None:
    fitted = fit(greater_than(40), default_client)
    assert {example.example.labels["digits"] for example in fitted.examples} == {"1"}
    assert (len(fitted), fitted.dropped) == (20, {NOT_SINGLE: 20})


def test_what_is_dropped_is_counted(letters_client: Client) -> None:
    fitted = fit(LETTERS, letters_client)
    assert sorted(example.example.clean for example in fitted.examples) == ["one two three y", "the cat sat on a"]
    assert fitted.dropped == {LENGTHS: 1, NOT_SINGLE: 1}
    assert "dropped 1: clean and corrupt differ" in repr(fitted)
    (cat,) = [example for example in fitted.examples if example.roles]
    assert cat.roles["subject"] == (5, 6, 7)  # after <|bos|> and "the "
    assert (cat.correct, cat.wrong) == tuple(letters_client.tokenize(x).token_ids[1:] for x in "bc")


def test_too_few_is_an_error_that_says_why(letters_client: Client) -> None:
    with pytest.raises(InvalidArgument, match=r"2 of the 4 examples .*not the 3 asked for .*ask for n=2"):
        fit(LETTERS, letters_client, 3)
    with pytest.raises(InvalidArgument, match=r"0 of the 20 examples of task 'ioi' .*dropped: .*one token$"):
        fit(ioi(20), letters_client)
    with pytest.raises(InvalidArgument, match="n must be 1 or more"):
        fit(LETTERS, letters_client, 0)


def test_the_seed_sets_which(default_client: Client) -> None:
    task = ioi(60)
    drawn = [tuple(e.clean for e in fit(task, default_client, 8, seed=seed).examples) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_ready_for_requests(default_client: Client) -> None:
    fitted = fit(ioi(60), default_client, 10)
    assert list(fitted.clean) == list(fitted.corrupt) == list(fitted.names) == [str(i) for i in range(10)]
    assert [target.inputs for target in fitted.targets] == [(name,) for name in fitted.names]
    first = fitted.examples[0]
    assert fitted.metrics[0] == LogitDifference(first.correct, first.wrong, -1) == fitted.targets[0].metric
    pairs = fitted.pairs("corrupt")
    assert [item.source_only for item in pairs] == [False] * 10 + [True] * 10
    assert pairs[0].token_ids == first.corrupt
    assert pairs[10].token_ids == first.clean
    assert pairs[10].name == fitted.source_name(first.name)


def test_groups_and_batches_lose_nothing(default_client: Client) -> None:
    fitted = fit(ioi(100), default_client, 30)
    groups = fitted.groups()
    assert {n: set(group.lengths) for n, group in groups.items()} == {n: {n} for n in groups}
    assert Counter(name for group in groups.values() for name in group.names) == Counter(fitted.names)
    assert len(fitted.largest_group()) == max(Counter(fitted.lengths).values())
    assert [len(batch) for batch in fitted.batches(12)] == [12, 12, 6]
    assert sum((batch.names for batch in fitted.batches(12)), ()) == fitted.names
    with pytest.raises(InvalidArgument, match="a batch has 1 example or more"):
        fitted.batches(0)


def test_positions_of_a_role(default_client: Client) -> None:
    fitted = fit(ioi(60), default_client, 6)
    for example in fitted.examples:
        (at,) = fitted.positions("s2")[example.name]
        assert example.clean_tokens[at] == example.example.wrong[0]
        assert example.corrupt_tokens[at] == example.example.correct[0]
    with pytest.raises(InvalidArgument, match=r"have no role 'verb'; roles: end, io, s1, s2"):
        fitted.positions("verb")
    with pytest.raises(InvalidArgument, match="no fitted example of 'ioi' has the labels"):
        fitted.where(order="none")
