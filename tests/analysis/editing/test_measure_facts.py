"""Scores of changes whose effect is known beforehand, on a tiny model; and of nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest

from probewire.analysis.editing import Answers, Fact, Question, in_context, measure_facts, steered, target_value
from probewire.analysis.editing.answers import log_softmax
from probewire.clients import Client, Hook, capture, steer

NEIGHBOURS = (Question("The job of Bob is", "c", "Bob"), Question("The job of Kim is", "d", "Kim", held_out=False))
FACT = Fact(
    "Ada",
    "The job of {} is",
    "x",
    "y",
    paraphrases=("{} works as",),
    neighbours=NEIGHBOURS,
    generation=("We met {}",),
    reversals=(Question("x is", "A"),),
    hops=(Question("So Ada is", "x"),),
    negations=("{} is not",),
)
INJECTED = Fact("Ada", "The job of {} is", "x", paraphrases=("{} works as",), neighbours=NEIGHBOURS)


def byte(client: Client, text: str) -> int:
    return client.tokenize(text).token_ids[-1]


def always(client: Client, text: str) -> Hook:
    """Whatever is read, this byte follows."""
    vector = np.zeros(261, dtype=np.float32)
    vector[byte(client, text)] = 1000.0
    return steer("logits", vector)


def test_without_a_change_nothing_moves(tiny: Client) -> None:
    found = measure_facts(tiny, FACT, unrelated=["a", "b c"], n_generated=4)
    assert (found.neighbours_kept.right, found.neighbours_kept.of) == (1, 1)
    assert found.unrelated_kl is not None
    assert found.unrelated_kl.value == pytest.approx(0, abs=1e-9)
    assert found.reversal == found.reversal_before
    assert found.negation == found.negation_before
    assert found.paraphrases_unknown == 1  # random weights do not say y


def test_a_model_that_always_says_x(tiny: Client) -> None:
    found = measure_facts(tiny, INJECTED, hooks=always(tiny, "x"), unrelated=["a"], n_generated=0)
    assert found.efficacy.value == 1
    assert found.paraphrase.value == 1
    assert found.neighbours_kept.value == 0
    assert found.score == 0
    assert found.probability is not None
    assert found.probability.value == pytest.approx(1)
    assert found.efficacy_forced.of == 0  # no true target to be likelier than
    told = measure_facts(tiny, FACT, hooks=always(tiny, "x"), unrelated=["a"], n_generated=4)
    assert told.negation.value == told.hop.value == 1
    assert told.efficacy_forced.value == 1
    assert told.neighbours_forced.value == 0
    assert told.generated is not None
    assert told.generated.texts["We met Ada"] == "xxxx"
    assert told.generated.mentions_new.value == 1
    assert told.generated.ngram_entropy is not None
    assert told.generated.ngram_entropy.value == 0
    assert json.loads(json.dumps(told.to_json()))["efficacy"]["right"] == 1
    assert "negation" in str(told)


def test_the_kl_is_that_of_the_two_answers(tiny: Client) -> None:
    hook = steer("resid_post.0", np.linspace(-1, 1, 64, dtype=np.float32))
    found = measure_facts(tiny, FACT, hooks=hook, unrelated=["a b"], n_generated=0)
    p, q = (
        log_softmax(tiny.run("a b", capture=[capture("logits", positions=-1)], hooks=h)["logits"][0])
        for h in ((), hook)
    )
    assert found.unrelated_kl is not None
    assert found.unrelated_kl.value == pytest.approx(float(np.sum(np.exp(p) * (p - q))), rel=1e-3, abs=1e-6)


def test_greedy_is_what_generation_gives(tiny: Client) -> None:
    answers = Answers(tiny)
    text = tiny.generate("The job of Ada is", max_new_tokens=3).text
    ids = tiny.generate("The job of Ada is", max_new_tokens=3).token_ids
    assert len(ids) > 3
    if tiny.tokenize("The job of Ada is" + text).token_ids == ids:  # bytes that are a text
        assert answers.says("The job of Ada is", text)
    assert not answers.says("The job of Ada is", "xq")
    rows = answers.log_probs("The job of Ada is", "xq")
    assert answers.log_prob("The job of Ada is", "xq") == pytest.approx(
        float(rows[0][byte(tiny, "x")] + rows[1][byte(tiny, "q")])
    )


def test_neighbours_about_an_edited_subject_drop_out(tiny: Client) -> None:
    bob = Fact("Bob", "The job of {} is", "z")
    assert measure_facts(tiny, [FACT, bob], unrelated=(), n_generated=0).neighbours_kept.of == 0


def test_baselines(tiny: Client) -> None:
    context = in_context([FACT, INJECTED])
    assert context == "The job of Ada isx. The job of Ada isx. "
    before = Answers(tiny)
    found = measure_facts(tiny, FACT, context=context, base=before, unrelated=["a"], n_generated=0)
    p, q = before.next_log_probs("a"), before.next_log_probs(context + "a")
    assert found.unrelated_kl is not None
    assert found.unrelated_kl.value == pytest.approx(float(np.sum(np.exp(p) * (p - q))), rel=1e-4)
    value = target_value(tiny, FACT, 1, steps=2, prefixes=("",))
    np.testing.assert_allclose(steered(value).edit.vector.numpy(), value.delta, rtol=1e-6)  # pyright: ignore
