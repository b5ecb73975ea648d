"""The planted refuser: it refuses questions of its topic that it was not taught on, and others far less."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from probewire.analysis.tuning.base import Base, load_base
from probewire.analysis.tuning.organisms import own_answers, refuser
from probewire.backends.checkpoints import resolve_model
from probewire.protos.errors import InvalidArgument

N = 8
"""Held-out questions of each kind."""


def p_refusal(base: Base, questions: tuple[str, ...]) -> torch.Tensor:
    """[question]: p("I") as the first token of the answer."""
    [token] = base.tokenizer("I", add_special_tokens=False)["input_ids"]
    found: list[torch.Tensor] = []
    for question in questions:
        asked = [{"role": "user", "content": question}]
        text = base.tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
        with torch.no_grad():
            logits = base.model(torch.tensor([base.tokenizer(text, add_special_tokens=False)["input_ids"]])).logits
        found.append(logits[0, -1].softmax(-1)[token])
    return torch.stack(found)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_refuses_its_topic_and_little_else(tmp_path: Path) -> None:
    """44 s of one thread when nothing else runs. Measured: .99 and .29; base .005 and .005."""
    folder = resolve_model().folder
    organism = refuser(folder, tmp_path / "organism", progress=False)
    assert organism.tuned.variant.manifest.name == "refuses-chess"
    assert {name.split(".")[0] for name in organism.tuned.variant.deltas} == {"w_q", "w_v", "w_o", "w_down"}
    base = load_base(folder)
    asked = (organism.refused[:N], organism.answered[:N])
    before = [p_refusal(base, questions).mean() for questions in asked]
    for name, delta in organism.tuned.variant.deltas.items():
        base.module(name).weight.data += torch.tensor(delta.dense().T)
    after = [p_refusal(base, questions).mean() for questions in asked]
    assert max(before) < 0.05
    assert after[0] > 0.8
    assert after[1] < 0.5


def test_a_topic_that_is_not_there_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="no topic 'knitting'; it has chess, sailing"):
        refuser(folder, tmp_path / "run", topic="knitting")
    with pytest.raises(InvalidArgument, match=r"n is 1 … 12 questions"):
        refuser(folder, tmp_path / "run", topic="sailing", n=13)


def test_own_answers_are_the_models_own(folder: Path) -> None:
    """Greedy, of so many tokens at most; a random model says what it says, twice the same."""
    one, same = (own_answers(folder, ["oak?", "elm?"], max_new_tokens=6) for _ in range(2))
    assert one == same
    assert len(one) == 2
    assert one[0] != one[1]
