"""Measures that need no judge: log-odds of two sets of tokens, divergence from the base, surprise to the base, repetition.

Each gives one number an item, so that two models are compared on the same items.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Gather, Input, Kl, Target, WeightedSum, capture
from ...clients.progress import progress_bar
from ...clients.requests.hooks import Hooks
from ...clients.session import SessionView
from ...protos.errors import InvalidArgument
from .likelihoods import Piece, likelihoods
from .subject import Subject, Uses, same_model

__all__ = ["choice_logodds", "divergence", "kl_to_base", "logodds", "perplexity_by_base", "repetition", "surprise"]

PAIRS_A_REQUEST = 16
MOST_POSITIONS = 16
"""Of a prompt; a request takes 256 metrics in all."""
_ORDERS = ((2, 2 / 3), (3, 4 / 3))
"""n-grams whose entropy counts, and by how much (ROME's measure of fluency, Meng et al. 2022)."""

Floats = NDArray[np.float64]


def choice_logodds(
    client: Client,
    prompts: Sequence[Any],
    a: Sequence[int],
    b: Sequence[int],
    *,
    hooks: Hooks = (),
    variant: Uses = (),
    session: SessionView | str = "",
    model: str = "",
) -> Floats:
    """[prompt]: ln P(a) − ln P(b) of the next token, each the summed probability of a set of token ids."""
    subject = Subject.of(client, hooks=hooks, variant=variant, session=session, model=model)
    return logodds([subject], prompts, a, b)[0]


def logodds(subjects: Sequence[Subject], prompts: Sequence[Any], a: Sequence[int], b: Sequence[int]) -> Floats:
    """[subject, prompt]; of sets that differ by prompt, and of other metrics: `at_ends.measure`. The normaliser cancels, so that only the sets' logits cross the wire."""
    first = same_model(subjects)
    if not a or not b or set(a) & set(b):
        raise InvalidArgument(f"two sets of tokens that share none are compared, got {list(a)[:8]} and {list(b)[:8]}")
    read = [capture("logits", reduce=Gather((*a, *b)), positions=-1, dtype="float64")]
    found = np.empty((len(subjects), len(prompts)))
    step = max(1, PAIRS_A_REQUEST * 2 // len(subjects))
    for start in range(0, len(prompts), step):
        names, inputs, edits = _asked(subjects, prompts[start : start + step])
        run = first.client.run(inputs, hooks=edits, capture=read, model=first.model, progress=False)
        for s, own in enumerate(names):
            rows = np.array([run.inputs[name]["logits"][0] for name in own])
            found[s, start : start + len(own)] = _log_sum(rows[:, : len(a)]) - _log_sum(rows[:, len(a) :])
    return found


def kl_to_base(
    client: Client,
    prompts: Sequence[Any],
    variant: Uses = (),
    *,
    hooks: Hooks = (),
    session: SessionView | str = "",
    model: str = "",
) -> Floats:
    """[prompt]: KL(base ‖ changed) in nats, mean over the positions of each prompt (but the first, which has no context).

    Of a prompt of more than 17 tokens over 16 positions, evenly spaced and the last among them.
    """
    return divergence(Subject.of(client, hooks=hooks, variant=variant, session=session, model=model), prompts)


def divergence(
    subject: Subject, prompts: Sequence[Any], *, label: str = "divergence", progress: bool = False
) -> Floats:
    """[prompt]; base and subject in one request, where the server compares all their probabilities."""
    found: list[float] = []
    lengths = [_length(subject, prompt) for prompt in prompts]
    with progress_bar(label, "prompts", show=progress) as bar:
        for start in range(0, len(prompts), PAIRS_A_REQUEST):
            bar(start, len(prompts))
            chosen = prompts[start : start + PAIRS_A_REQUEST]
            names, inputs, edits = _asked([subject.base, subject], chosen, sources=1)
            targets = [
                Target(_mean_kl(base, n), (own,))
                for base, own, n in zip(*names, lengths[start : start + PAIRS_A_REQUEST], strict=True)
            ]
            swept = subject.client.sweep(inputs, targets, [[]], hooks=edits, model=subject.model, progress=False)
            found += [float(swept.measured[name][0, 0]) for name in names[1]]
    return np.array(found)


def perplexity_by_base(client: Client, texts: Sequence[str], *, model: str = "") -> Floats:
    """[text]: how surprising the unchanged model finds each text, as exp of the mean over its tokens."""
    return np.exp(surprise([Subject(client, model)], texts)[0][0])


def surprise(
    subjects: Sequence[Subject], texts: Sequence[str], *, longest: int = 0, progress: bool = False
) -> tuple[Floats, Floats]:
    """Mean −ln P of a text's tokens after its first, [subject, text], and how many there are, [text].

    `longest`: tokens of a text at most (0: all). Raises InvalidArgument for a text of one token.
    """
    first = same_model(subjects)
    ids = [first.client.tokenize(text, model=first.model).token_ids for text in texts]
    pieces = [Piece(one[:longest] if longest else one, 1) for one in ids]
    scores = likelihoods(subjects, pieces, label="perplexity", progress=progress)
    found = np.array([[-float(one.own.mean()) for one in row] for row in scores])
    return found, np.array([len(one.token_ids) - 1 for one in pieces], dtype=np.float64)


def repetition(token_ids: Sequence[int]) -> tuple[float, float]:
    """Of a text: the share of its 4-grams that occurred before, and the entropy of its 2- and 3-grams in bits, weighted.

    (0, 0) of a text too short to say. Repetition raises the first and lowers the second.
    """
    grams = _grams(token_ids, 4)
    share = 1 - len(grams) / sum(grams.values()) if grams else 0.0
    entropies = [weight * _entropy(_grams(token_ids, n)) for n, weight in _ORDERS]
    return share, float(np.mean(entropies))


def _asked(
    subjects: Sequence[Subject], prompts: Sequence[Any], *, sources: int = 0
) -> tuple[list[list[str]], list[Input], list[Any]]:
    """Names [subject][prompt], all inputs, and every subject's own edits at its own; the first `sources` only serve others."""
    names = [[f"{s}.{i}" for i in range(len(prompts))] for s in range(len(subjects))]
    inputs, edits = list[Input](), list[Any]()
    for s, (subject, own) in enumerate(zip(subjects, names, strict=True)):
        made = subject.inputs(dict(zip(own, prompts, strict=True)))
        inputs += [_as_source(item) for item in made] if s < sources else made
        edits += subject.edits(own)
    return names, inputs, edits


def _as_source(item: Input) -> Input:
    return Input(
        text=item.text,
        messages=item.messages,
        token_ids=item.token_ids,
        name=item.name,
        source_only=True,
        variants=item.variants,
    )


def _mean_kl(base: str, n: int) -> WeightedSum:
    positions = [*range(1, n)] or [0]
    if len(positions) > MOST_POSITIONS:
        positions = sorted({positions[int(i)] for i in np.linspace(0, len(positions) - 1, MOST_POSITIONS)})
    return WeightedSum(tuple(Kl(base, p) for p in positions), (1 / len(positions),) * len(positions))


def _length(subject: Subject, prompt: Any) -> int:
    if isinstance(prompt, (str, Input)):
        return len(subject.client.tokenize(prompt, model=subject.model).token_ids)
    return len(prompt)


def _log_sum(rows: Floats) -> Floats:
    peak = rows.max(axis=-1)
    return peak + np.log(np.exp(rows - peak[:, None]).sum(axis=-1))


def _grams(ids: Sequence[int], n: int) -> Counter[tuple[int, ...]]:
    return Counter(tuple(ids[i : i + n]) for i in range(len(ids) - n + 1))


def _entropy(grams: Counter[tuple[int, ...]]) -> float:
    total = sum(grams.values())
    return -sum(count / total * math.log2(count / total) for count in grams.values()) if total else 0.0
