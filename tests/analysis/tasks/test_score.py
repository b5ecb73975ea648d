"""Accuracy against whole logits, and what the default model is known to do."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.tasks import (
    Example,
    FittedTask,
    Form,
    Task,
    accuracy,
    agreement,
    capitals,
    fit,
    greater_than,
    ioi,
)
from probewire.clients import Client, ablate
from probewire.clients.requests.hooks import Hooks

WORDS = "abcdefgh"
RANDOM = Task(
    "random",
    tuple(
        Example(f"some {a}{b} text", f"some {b}{a} text", (a, "x"), (b, "y", "z"))
        for a, b in zip(WORDS, WORDS[::-1], strict=True)
    ),
)


def by_hand(client: Client, task: FittedTask, form: Form, hooks: Hooks = ()) -> list[float]:
    found: list[float] = []
    for example in task.examples:
        logits = client.run(task.prompts(form)[example.name], capture="logits", hooks=hooks)["logits"][-1]
        found.append(np.mean([logits[i] for i in example.correct]) - np.mean([logits[i] for i in example.wrong]))
    return found


def test_equals_whole_logits(letters_client: Client) -> None:
    fitted = fit(RANDOM, letters_client)
    for hooks in ((), [ablate("attn_out.1")]):
        score = accuracy(letters_client, fitted, hooks=hooks)
        forms: tuple[Form, ...] = ("clean", "corrupt")
        for form in forms:
            expected = by_hand(letters_client, fitted, form, hooks)
            np.testing.assert_allclose(getattr(score, form), expected, rtol=1e-4, atol=1e-5)
        assert score.accuracy == np.mean(score.clean > 0)
        assert score.corrupt_accuracy == np.mean(score.corrupt > 0)
        assert score.difference == pytest.approx(np.mean(score.clean))
    assert f"clean {int((score.clean > 0).sum())}/8 right" in repr(score)


def test_more_examples_than_a_request_takes(letters_client: Client) -> None:
    examples = tuple(Example(f"{i:02} of it", f"{i:02} or it", ("a",), ("b",)) for i in range(70))
    fitted = fit(Task("many", examples), letters_client)
    score = accuracy(letters_client, fitted)
    assert score.clean.shape == (70,)
    assert score.clean[69] == pytest.approx(by_hand(letters_client, fitted.batches(69)[1], "clean")[0], rel=1e-4)


@pytest.mark.slow
def test_one_family_of_ioi(default_client: Client) -> None:
    """ANALYSIS.md measured 16/16, +5.30 and −5.51 with a template of its own; ours must be as clear."""
    fitted = fit(ioi().where(template="0"), default_client, 16)
    score = accuracy(default_client, fitted)
    assert score.accuracy == 1.0
    assert score.difference > 4
    assert score.corrupt_difference < -4


@pytest.mark.parametrize(
    ("task", "least"), [(ioi(), 0.85), (greater_than(), 0.9), (agreement(), 0.9), (capitals(), 0.95)]
)
def test_the_default_model_does_every_task(default_client: Client, task: Task, least: float) -> None:
    score = accuracy(default_client, fit(task, default_client, 20))
    assert score.accuracy >= least
    assert score.difference > 2
    assert score.corrupt_difference < -1, "the corruption turns the answer over"


def test_a_third_person_leaves_neither_name(default_client: Client) -> None:
    score = accuracy(default_client, fit(ioi(corrupt="other"), default_client, 20))
    assert abs(score.corrupt_difference) < score.difference / 4
