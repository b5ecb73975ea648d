"""How well an edit holds, and what else it moved: greedy decoding decides, teacher forcing is a second column.

Measures of Meng et al. 2022 and 2023 (CounterFact). Teacher forcing overstates: the answer's length and beginning are given
away (Yang et al. 2025, "The Mirage of Model Editing"), so the shares that count are those of greedy decoding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...clients import Client
from ...clients.requests.hooks import Hooks
from ..datasets import load_set
from ..reports.measures import repetition
from ..reports.subject import Uses
from ..sae.scoring.intervals import Estimate, mean_of_means
from ..sae.unlearning.mcq import Accuracy
from .answers import Answers
from .fact import Fact, Question
from .fact_scores import FactScores, Generated

__all__ = ["general_prompts", "measure_facts"]

Floats = NDArray[np.float64]


def measure_facts(
    client: Client,
    facts: Fact | Sequence[Fact],
    *,
    hooks: Hooks = (),
    variant: Uses = (),
    context: str = "",
    base: Answers | None = None,
    unrelated: Sequence[str] | None = None,
    n_generated: int = 24,
    model: str = "",
) -> FactScores:
    """Scores of facts under `hooks` (`edited.hooks`) or a loaded `variant`, beside the model as it is.

    `context`: a text before every prompt, in place of an edit: the baseline that costs nothing (`in_context`). `base`: what the model answers without the edit, kept between calls: `Answers(client)`. `unrelated`: prompts that have
    nothing to do with it; default: the set `general`. `n_generated`: tokens of each generation prompt; 0: none. Neighbours
    that are about an edited subject are left out. Paraphrases count where the base gives the true target, or where
    the fact has none; the others are counted apart.
    """
    listed = (facts,) if isinstance(facts, Fact) else tuple(facts)
    before = base or Answers(client, model=model)
    after = Answers(client, hooks=hooks, variant=variant, context=context, model=model)
    general = general_prompts() if unrelated is None else tuple(unrelated)
    subjects = {fact.subject for fact in listed}
    neighbours = list(
        dict.fromkeys((q, fact.target_new) for fact in listed for q in fact.judged if q.subject not in subjects)
    )
    _read_all(before, after, listed, neighbours, general)
    paraphrases = [(fact, text) for fact in listed for text in fact.paraphrases]
    known = [(f, t) for f, t in paraphrases if not f.target_true or before.says(t, f.target_true)]
    asked = [(fact, fact.asked) for fact in listed]
    questions = {name: [q for f in listed for q in getattr(f, name)] for name in ("reversals", "hops")}
    return FactScores(
        n_facts=len(listed),
        efficacy=_said(after, asked),
        efficacy_forced=_preferred(after, asked),
        probability=_mean([np.exp(after.log_prob(fact.asked, fact.target_new)) for fact in listed]),
        paraphrase=_said(after, known),
        paraphrase_forced=_preferred(after, known),
        paraphrases_unknown=len(paraphrases) - len(known),
        neighbours_kept=_kept(before, after, [q.prompt for q, _ in neighbours]),
        neighbours_forced=_still_preferred(after, neighbours),
        neighbours_kl=_mean([_kl(before, after, prompt) for prompt in dict.fromkeys(q.prompt for q, _ in neighbours)]),
        reversal=_answered(after, questions["reversals"]),
        reversal_before=_answered(before, questions["reversals"]),
        hop=_answered(after, questions["hops"]),
        negation=_says_new(after, listed),
        negation_before=_says_new(before, listed),
        unrelated_kl=_mean([_kl(before, after, prompt) for prompt in general]),
        generated=_generated(before, after, listed, n_generated),
    )


def general_prompts() -> tuple[str, ...]:
    """The set `general`: 64 neutral beginnings."""
    return tuple(str(item["text"]) for item in load_set("general").data["texts"])


def _read_all(
    before: Answers,
    after: Answers,
    facts: Sequence[Fact],
    neighbours: Sequence[tuple[Question, str]],
    general: Sequence[str],
) -> None:
    """Everything in a few requests."""
    targets = [(text, f.target_new) for f in facts for text in (f.asked, *f.paraphrases)]
    true = [(text, f.target_true) for f in facts if f.target_true for text in (f.asked, *f.paraphrases)]
    alike = [(q.prompt, answer) for q, new in neighbours for answer in (q.answer, new) if q.answer]
    asked = [(q.prompt, q.answer) for f in facts for q in (*f.reversals, *f.hops)]
    plain = [(text, "") for f in facts for text in f.negations]
    plain += [(q.prompt, "") for q, _ in neighbours] + [(text, "") for text in general]
    after.read([*targets, *true, *alike, *asked, *plain])
    before.read([*true, *asked, *plain])


def _said(answers: Answers, asked: Sequence[tuple[Fact, str]]) -> Accuracy:
    return Accuracy(sum(answers.says(text, fact.target_new) for fact, text in asked), len(asked))


def _preferred(answers: Answers, asked: Sequence[tuple[Fact, str]]) -> Accuracy:
    """The new target likelier than the true one; of facts that have one."""
    pairs = [(fact, text) for fact, text in asked if fact.target_true]
    right = sum(answers.log_prob(t, f.target_new) > answers.log_prob(t, f.target_true) for f, t in pairs)
    return Accuracy(right, len(pairs))


def _kept(before: Answers, after: Answers, prompts: Sequence[str]) -> Accuracy:
    once = list(dict.fromkeys(prompts))
    same = sum(int(before.next_log_probs(p).argmax()) == int(after.next_log_probs(p).argmax()) for p in once)
    return Accuracy(same, len(once))


def _still_preferred(after: Answers, neighbours: Sequence[tuple[Question, str]]) -> Accuracy:
    pairs = [(q, new) for q, new in neighbours if q.answer and q.answer != new]
    return Accuracy(
        sum(after.log_prob(q.prompt, q.answer) > after.log_prob(q.prompt, new) for q, new in pairs), len(pairs)
    )


def _answered(answers: Answers, questions: Sequence[Question]) -> Accuracy:
    return Accuracy(sum(answers.says(q.prompt, q.answer) for q in questions), len(questions))


def _says_new(answers: Answers, facts: Sequence[Fact]) -> Accuracy:
    """How often a negated prompt is followed by the new target."""
    asked = [(fact, text) for fact in facts for text in fact.negations]
    right = 0
    for fact, text in asked:
        first = answers.tokens(text, fact.target_new)[1][0]
        right += int(answers.next_log_probs(text).argmax()) == first
    return Accuracy(right, len(asked))


def _kl(before: Answers, after: Answers, prompt: str) -> float:
    p, q = before.next_log_probs(prompt), after.next_log_probs(prompt)
    return float(np.sum(np.exp(p) * (p - q)))


def _mean(values: Sequence[float]) -> Estimate | None:
    """Mean with a bootstrap interval over prompts; None of nothing."""
    return mean_of_means([np.array(values, dtype=np.float64)], seed=0) if values else None


def _generated(before: Answers, after: Answers, facts: Sequence[Fact], n_tokens: int) -> Generated | None:
    prompts = [(fact, text) for fact in facts for text in fact.generation]
    if not prompts or not n_tokens:
        return None
    texts = after.texts([text for _, text in prompts], n_tokens)
    new = sum(fact.target_new.strip() in texts[text] for fact, text in prompts)
    true = [(fact, text) for fact, text in prompts if fact.target_true]
    old = sum(fact.target_true.strip() in texts[text] for fact, text in true)
    losses = [
        -before.log_prob(text, texts[text]) / len(before.tokens(text, texts[text])[1]) for text in texts if texts[text]
    ]
    entropy = [repetition(before.tokens(text, texts[text])[1])[1] for text in texts if texts[text]]
    return Generated(Accuracy(new, len(prompts)), Accuracy(old, len(true)), _mean(losses), _mean(entropy), dict(texts))
