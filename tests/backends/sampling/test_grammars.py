"""Grammars over tokens of one byte and more: what is allowed spells what the grammar says, and ends where it ends."""

from __future__ import annotations

import json
import re
import sys
from unittest import mock

import numpy as np
import pytest

from probewire.backends.sampling.adjusted import Adjusted
from probewire.backends.sampling.choice import choose_token
from probewire.backends.sampling.grammars import Grammars, Matcher
from probewire.protos.errors import FailedPrecondition, InvalidArgument
from probewire.protos.generation.sampling import Grammar, Sampling

BOS, EOS, TURN, PAD = 256, 257, 258, 262
PIECES = [*(bytes([i]) for i in range(256)), b"<|bos|>", b"<|eos|>", b"<|turn|>", b'{"', b'": ', b"true", b""]
SIZE = len(PIECES)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "kind": {"enum": ["a", "b"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}


def encode(text: str) -> list[int]:
    return list(text.encode())


def grammars(end_ids: tuple[int, ...] = (EOS, TURN)) -> Grammars:
    hidden = frozenset({BOS, EOS, TURN})
    return Grammars(PIECES.__getitem__, encode, vocab_size=SIZE, end_ids=end_ids, hidden_ids=hidden)


@pytest.fixture(scope="module")
def made() -> Grammars:
    return grammars()


def written(matcher: Matcher, seed: int, most: int = 400) -> tuple[str, int]:
    """A text drawn from random logits, and the token that ended it."""
    rng, adjusted = np.random.default_rng(seed), Adjusted(Sampling(), [], SIZE, matcher)
    found = b""
    for index in range(most):
        logits = adjusted.of(rng.normal(size=SIZE).astype(np.float32), index)
        token = choose_token(logits, Sampling(temperature=1.0), seed, index)
        adjusted.took(token)
        if token in (EOS, TURN):
            return found.decode(), token
        found += PIECES[token]
    raise AssertionError(f"no end: {found!r}")


def test_whatever_is_drawn_is_what_the_schema_says(made: Grammars) -> None:
    grammar, ends = Grammar("json_schema", json.dumps(SCHEMA)), set[int]()
    for seed in range(40):
        text, end = written(made.matcher(grammar), seed)
        found = json.loads(text)
        ends.add(end)
        assert set(found) == {"name", "age", "kind", "tags"}
        assert len(found["name"]) <= 6
        assert 0 <= found["age"] <= 99
        assert found["kind"] in ("a", "b")
        assert all(isinstance(tag, bool) for tag in found["tags"])
        assert len(found["tags"]) <= 3
    assert ends == {EOS, TURN}, "each end token ends"


def test_a_regular_expression_is_the_whole_text(made: Grammars) -> None:
    grammar = Grammar("regex", r"[a-c]{2,4}-[0-9]+x")
    for seed in range(20):
        text, _ = written(made.matcher(grammar), seed)
        assert re.fullmatch(r"[a-c]{2,4}-[0-9]+x", text)


def test_a_context_free_grammar_is_followed(made: Grammars) -> None:
    grammar = Grammar("lark", 'start: "(" start ")" | "x"')
    texts = {written(made.matcher(grammar), seed)[0] for seed in range(20)}
    assert all(re.fullmatch(r"\(*x\)*", text) and text.count("(") == text.count(")") for text in texts)
    assert len(texts) > 1


def test_what_is_no_text_is_never_allowed_and_an_end_only_at_the_end(made: Grammars) -> None:
    matcher = made.matcher(Grammar("regex", "a[^b]?"))
    assert set(np.flatnonzero(matcher.allowed())) == {ord("a")}
    matcher.take(ord("a"))
    allowed = matcher.allowed()
    assert allowed[[EOS, TURN, ord("z")]].all()
    assert not allowed[[BOS, PAD, ord("b")]].any()
    assert allowed.shape == (SIZE,)
    matcher.take(TURN)
    assert matcher.ended


def test_past_its_end_a_text_changes_nothing(made: Grammars) -> None:
    adjusted = Adjusted(Sampling(), [], SIZE, made.matcher(Grammar("regex", "a")))
    logits = np.zeros(SIZE, dtype=np.float32)
    for index, token in enumerate((ord("a"), EOS)):
        adjusted.of(logits, index)
        adjusted.took(token)
    assert (adjusted.of(logits, 2) == logits).all(), "an engine runs a step ahead"


def test_texts_of_one_grammar_do_not_know_of_each_other(made: Grammars) -> None:
    grammar = Grammar("regex", "ab")
    one, other = made.matcher(grammar), made.matcher(grammar)
    one.take(ord("a"))
    assert set(np.flatnonzero(one.allowed())) == {ord("b")}
    assert set(np.flatnonzero(other.allowed())) == {ord("a")}


def test_where_an_edit_has_left_no_token_it_says_so(made: Grammars) -> None:
    adjusted = Adjusted(Sampling(), [], SIZE, made.matcher(Grammar("regex", "a")))
    logits = np.zeros(SIZE, dtype=np.float32)
    logits[ord("a")] = -np.inf
    with pytest.raises(FailedPrecondition, match="has the logit -inf"):
        adjusted.of(logits, 0)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("json_schema", "[1", "is no json_schema|cannot be followed"),
        ("json_schema", '{"type": "thing"}', "cannot be followed"),
        ("json_schema", '{"type": "object", "unevaluatedProperties": false}', "cannot be followed"),
        ("json_schema", '{"$ref": "http://elsewhere/x"}', "cannot be followed"),
        ("json_schema", '{"type": "array", "uniqueItems": true}', "cannot be followed"),
        ("regex", "(a", "cannot be followed"),
        ("regex", "(?=a)b", "cannot be followed"),
        ("lark", "start: other", "cannot be followed"),
        ("lark", "begin: /a/", "cannot be followed"),
    ],
)
def test_what_cannot_be_followed_is_refused(made: Grammars, kind: str, text: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        made.matcher(Grammar(kind, text))


def test_a_model_without_an_end_has_no_grammars() -> None:
    with pytest.raises(FailedPrecondition, match="needs a token that ends a text"):
        grammars(end_ids=()).matcher(Grammar("regex", "a"))


def test_without_the_library_it_says_what_to_install() -> None:
    with (
        mock.patch.dict(sys.modules, {"llguidance": None}),
        pytest.raises(FailedPrecondition, match=r"pip install 'probewire\[grammar\]'"),
    ):
        grammars().matcher(Grammar("regex", "a"))
