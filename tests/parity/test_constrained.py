"""Penalties, biases and grammars in generations: one meaning on each engine, alone and beside neighbours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.backends.hooks.base import Backend
from probewire.backends.hooks.sequence import Sequence
from probewire.backends.model.tokenizer import Tokenizer
from probewire.backends.sampling.adjusted import Adjusted
from probewire.backends.sampling.choice import choose_token
from probewire.clients import patch
from probewire.protos.edits import Add
from probewire.protos.errors import FailedPrecondition
from probewire.protos.generation.sampling import Grammar, Sampling, TokenBias
from probewire.protos.spec import Capture, Hook, Plan
from tests.parity.harness import generate, load, run, sequence, stack_caches
from tests.tiny_models import tiny_checkpoint

PROMPT = [7, 99, 12, 200, 31, 64, 5, 18, 77, 140, 3]
OTHER = [30, 31, 32, 33]
N_NEW = 12
SCHEMA = json.dumps({"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]})
SAMPLINGS = {
    "penalties": Sampling(N_NEW, presence_penalty=1.5, frequency_penalty=0.7, repetition_penalty=1.8),
    "drawn penalties": Sampling(N_NEW, temperature=1.0, seed=4, top_k=20, repetition_penalty=0.6),
    "biases": Sampling(N_NEW, temperature=0.7, seed=9, logit_bias=(TokenBias(65, 4.0), TokenBias(66, -100.0))),
    "schema": Sampling(N_NEW, temperature=1.0, seed=2, grammar=Grammar("json_schema", SCHEMA)),
    "greedy regex": Sampling(N_NEW, presence_penalty=0.4, grammar=Grammar("regex", "[a-f0-9]{3,40}")),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=["torch", "mlx", "torch alone", "torch stacked"])
def backend(request: pytest.FixtureRequest, folder: Path) -> Any:
    name, _, own = request.param.partition(" ")
    made = load(name, folder)
    if own == "stacked":
        stack_caches(made)
    assert own != "alone" or made.generate_alone("a test of it")
    yield made
    made.close()


@pytest.fixture(scope="module")
def tokenizer(folder: Path, backend: Backend) -> Tokenizer:
    return Tokenizer(folder, backend.info.vocab_size)


def _adjusted(tokenizer: Tokenizer, sampling: Sampling, prompt: list[int]) -> Adjusted:
    matcher = None if sampling.grammar is None else tokenizer.grammars.matcher(sampling.grammar)
    return Adjusted(sampling, prompt, tokenizer.vocab_size, matcher)


def _sequence(
    backend: Backend, tokenizer: Tokenizer, sampling: Sampling, plan: Plan, name: str, prompt: list[int] = PROMPT
) -> Sequence:
    made = sequence(backend, prompt, plan, mode="generate", max_new=N_NEW, name=name, sampling=sampling)
    if sampling.adjusts:
        made.adjusted = _adjusted(tokenizer, sampling, prompt)
    return made


def _steered() -> Plan:
    direction = np.random.default_rng(1).normal(size=64).astype(np.float32)
    return Plan((Hook("resid_post.1", edit=Add(direction, alpha=0.7)), Hook("logits", capture=Capture())))


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_tokens_are_those_of_the_forwards_logits(backend: Backend, tokenizer: Tokenizer, kind: str) -> None:
    """A run over what was generated gives the logits of each step; choosing by them again gives each token."""
    sampling, plan = SAMPLINGS[kind], _steered()
    [made] = generate(backend, [_sequence(backend, tokenizer, sampling, plan, "s")])
    tokens = made.tokens
    logits = run(backend, tokens, plan, prompt_length=len(PROMPT))[1, "logits", ""].values
    adjusted, seed = _adjusted(tokenizer, sampling, PROMPT), sampling.seed or 0
    for index, token in enumerate(tokens[len(PROMPT) :]):
        row = logits[len(PROMPT) - 1 + index].astype(np.float32)
        assert choose_token(adjusted.of(row, index), sampling, seed, index) == token
        adjusted.took(token)
    plain = generate(backend, [_sequence(backend, tokenizer, Sampling(N_NEW), plan, "plain")])
    assert tokens != plain[0].tokens, "it changes something"


def test_neighbours_stay_as_they_are_to_the_bit(backend: Backend, tokenizer: Tokenizer) -> None:
    plan = _steered()

    def made(samplings: list[Sampling]) -> list[Any]:
        prompts = [PROMPT if i % 2 else OTHER for i in range(len(samplings))]
        return generate(
            backend,
            [
                _sequence(backend, tokenizer, sampling, plan, str(i), prompt)
                for i, (sampling, prompt) in enumerate(zip(samplings, prompts, strict=True))
            ],
        )

    constrained = [*SAMPLINGS.values()]
    plain = [Sampling(N_NEW), Sampling(N_NEW, temperature=1.0, seed=3), Sampling(N_NEW)]
    beside = made(plain + constrained)[:3]
    alike = made(plain + [Sampling(N_NEW)] * len(constrained))[:3]
    for one, other in zip(beside, alike, strict=True):
        assert one.tokens == other.tokens
        assert (one.captured[1, "logits", ""].values == other.captured[1, "logits", ""].values).all()
    mixed = made([constrained[i // 2] if i % 2 else Sampling(N_NEW) for i in range(8)])
    for i in (1, 3, 5, 7):
        [alone] = generate(backend, [_sequence(backend, tokenizer, constrained[i // 2], plan, "alone")])
        assert alone.tokens == mixed[i].tokens


def test_a_text_that_follows_a_schema_is_json(backend: Backend, tokenizer: Tokenizer) -> None:
    sampling = Sampling(
        60,
        temperature=1.0,
        seed=2,
        grammar=Grammar("json_schema", SCHEMA.replace("}}", '}}, "additionalProperties": false')),
    )
    made = sequence(backend, PROMPT, Plan(()), mode="generate", max_new=60, sampling=sampling)
    made.adjusted = _adjusted(tokenizer, sampling, PROMPT)
    [found] = generate(backend, [made])
    new = found.tokens[len(PROMPT) :]
    end = next(i for i, token in enumerate(new) if token in tokenizer.end_ids)
    assert json.loads(tokenizer.decode(new[:end])) in ({"a": True}, {"a": False})


def test_one_whose_allowed_tokens_are_edited_away_fails_alone(backend: Backend, tokenizer: Tokenizer) -> None:
    gone = patch("logits", value=float("-inf"), units=tokenizer.codec.encode("abcdef0123456789"))
    sampling = SAMPLINGS["greedy regex"]
    failing = _sequence(backend, tokenizer, sampling, Plan((gone,)), "failing")
    beside = _sequence(backend, tokenizer, Sampling(N_NEW), Plan(()), "beside", OTHER)
    found = generate(backend, [failing, beside], failing=("failing",))
    [alone] = generate(backend, [_sequence(backend, tokenizer, Sampling(N_NEW), Plan(()), "alone", OTHER)])
    assert found[1].tokens == alone.tokens
    again = _sequence(backend, tokenizer, sampling, Plan((gone,)), "again")
    with pytest.raises(FailedPrecondition, match="-inf"):
        generate(backend, [again])
    assert backend.engine is not None
    for one in backend.engine.active:
        backend.engine.remove(one)
