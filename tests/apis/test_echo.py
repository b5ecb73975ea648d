"""`echo` in /v1/completions and the tokenizer's routes on a real server: what lm-evaluation-harness asks for."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import httpx
import openai
import pytest

from probewire.clients import Client, capture
from probewire.protos.spec import NextLogprob
from tests.apis.serving import Served

PROMPT = "When Mary and John 😀"


@pytest.fixture(scope="module")
def client(served: Served) -> Generator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.http}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def ours(served: Served) -> Generator[Client]:
    with Client(f"grpc://{served.grpc}") as client:
        yield client


def _own(ours: Client, ids: list[int], model: str, hooks: Any = ()) -> list[float]:
    read = capture("logits", reduce="next_logprob")
    return ours.run(ids, hooks=hooks, capture=read, model=model)["logits"].tolist()


def test_echoed_log_probabilities_are_our_captures_to_the_float(
    client: openai.OpenAI, ours: Client, model: str
) -> None:
    """As lm-evaluation-harness asks: token ids in lists, one new token."""
    ids = [list(ours.tokenize(text, model=model).token_ids) for text in (PROMPT, "Hello there", "x")]
    ids.append(ids[0][:1])
    answer = client.completions.create(
        model=model, prompt=ids, echo=True, max_tokens=1, logprobs=1, temperature=0, seed=1234
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for one, choice in zip(ids, answer.choices, strict=True):
        told: Any = choice.logprobs
        assert told is not None
        assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(one) + 1
        assert (told.token_logprobs[0], told.top_logprobs[0]) == (None, None)
        assert told.token_logprobs[1:-1] == (_own(ours, one, model) if len(one) > 1 else [])
        assert (
            told.token_logprobs[-1] == ours.generate(one, model=model, max_new_tokens=1, logprobs=0).only.new[0].logprob
        )
        for own, top in zip(told.token_logprobs[1:], told.top_logprobs[1:], strict=True):
            assert max(top.values()) >= own
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (sum(map(len, ids)), 4)


def test_a_token_is_greedy_where_its_own_is_the_largest_float(client: openai.OpenAI, ours: Client, model: str) -> None:
    """The model's own greedy words are, and the least likely one is not."""
    made = ours.generate(PROMPT, model=model, max_new_tokens=6, ignore_eos=True).only
    ids = [*made.prompt_ids, *(token.id for token in made.new)]
    answer = client.completions.create(model=model, prompt=ids, echo=True, max_tokens=0, logprobs=3)
    told: Any = answer.choices[0].logprobs
    assert told is not None
    n = len(made.prompt_ids)
    greedy = [own == max(top.values()) for own, top in zip(told.token_logprobs[1:], told.top_logprobs[1:], strict=True)]
    assert greedy[n - 1 :] == [True] * 6
    assert not all(greedy[: n - 1])
    assert (answer.choices[0].finish_reason, len(told.tokens)) == ("length", len(ids))
    read = ours.run(ids, capture=capture("logits", reduce=NextLogprob(top=3)), model=model).captures
    assert told.token_logprobs[1:] == read["logits"].tolist()
    assert [max(top.values()) for top in told.top_logprobs[1:]] == read.top_k("logits")[0][:, 0].tolist()


def test_a_text_comes_back_before_what_is_generated(client: openai.OpenAI, ours: Client, model: str) -> None:
    plain = client.completions.create(model=model, prompt=PROMPT, max_tokens=4, temperature=0)
    answer = client.completions.create(
        model=model, prompt=[PROMPT, "Hi"], echo=True, n=2, max_tokens=4, temperature=0, logprobs=0
    )
    assert [choice.text[: len(text)] for choice, text in zip(answer.choices, [PROMPT] * 2 + ["Hi"] * 2, strict=True)] == [
        PROMPT, PROMPT, "Hi", "Hi",
    ]  # fmt: skip
    assert answer.choices[0].text == PROMPT + plain.choices[0].text
    told: Any = answer.choices[1].logprobs
    assert told is not None
    assert told.text_offset[0] == 0
    assert told.text_offset == sorted(told.text_offset)
    n = len(ours.tokenize(PROMPT, model=model).token_ids)
    assert told.text_offset[n] == len(PROMPT)
    assert "bytes:\\xf0" in "".join(told.tokens[:n]) or "😀" in "".join(told.tokens[:n])
    silent = client.completions.create(model=model, prompt=PROMPT, echo=True, max_tokens=0)
    assert (silent.choices[0].text, silent.choices[0].logprobs) == (PROMPT, None)


def test_hooks_are_in_what_is_echoed_and_captures_are_the_callers_alone(
    client: openai.OpenAI, ours: Client, model: str
) -> None:
    ids = list(ours.tokenize(PROMPT, model=model).token_ids)
    hooks: list[Any] = [
        {"site": "resid_post.0", "edit": {"scale": {"factor": 0.5}}},
        {"site": "resid_post.1", "capture": {"reduce": "norm"}, "id": "mine"},
    ]
    from probewire.protos.spec import Hook, Scale

    for max_tokens in (0, 1):
        answer = client.completions.create(
            model=model,
            prompt=ids,
            echo=True,
            max_tokens=max_tokens,
            logprobs=1,
            temperature=0,
            extra_body={"probewire": {"hooks": hooks}},
        )
        told: Any = answer.choices[0].logprobs
        assert told is not None
        edited = _own(ours, ids, model, [Hook("resid_post.0", edit=Scale(0.5))])
        assert told.token_logprobs[1 : len(ids)] == edited
        assert edited != _own(ours, ids, model)
        extra: Any = answer.model_extra
        assert {tensor["id"] for tensor in extra["probewire"]["tensors"]} == {"mine"}


def test_the_tokenizers_routes(served: Served, ours: Client, model: str) -> None:
    ids = ours.tokenize(PROMPT, model=model).token_ids
    with httpx.Client(base_url=served.http) as call:
        info = call.get("/tokenizer_info", params={"model": model}).json()
        assert info == {k: v for k, v in _named(ours, model).items() if v is not None}
        plain = call.post("/tokenize", json={"model": model, "prompt": PROMPT, "add_special_tokens": False}).json()
        assert plain["tokens"] == list(ours.tokenize(PROMPT, model=model, add_special_tokens=False).token_ids)
        assert plain["count"] == len(plain["tokens"])
        whole = call.post("/tokenize", json={"model": model, "prompt": PROMPT}).json()
        assert whole["tokens"] == list(ids)
        assert call.post("/detokenize", json={"model": model, "tokens": plain["tokens"]}).json() == {"prompt": PROMPT}
        assert call.post("/tokenize", json={"model": model}).status_code == 422
        assert call.post("/detokenize", json={"model": model, "tokens": [-1]}).status_code == 422
        assert call.post("/detokenize", json={"model": model, "tokens": []}).status_code == 422
        assert "loaded" in call.get("/tokenizer_info", params={"model": "nobody"}).json()["error"]["message"]


def _named(ours: Client, model: str) -> dict[str, str | None]:
    info = ours.tokenizer_info(model)
    return {name: getattr(info, name) for name in ("bos_token", "eos_token", "pad_token", "chat_template")}
