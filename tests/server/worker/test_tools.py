"""Tools over OpenAI's face and a tiny real model whose template reads them, on both backends."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fake_model import FakeOperations
from rest_caller import Caller

from probewire.backends.model.limits import Limits
from probewire.clients import Client, steer
from probewire.protos.generation.messages import Message, Tool
from probewire.protos.model import Input
from probewire.protos.wire.codec import to_json
from probewire.server.api.http.app import create_app
from probewire.server.config import WorkerConfig
from probewire.server.worker.inprocess import InProcessService
from probewire.server.worker.model import LocalModel
from probewire.server.worker.operations import LocalOperations
from tests.tiny_models import tiny_checkpoint
from tests.tiny_tokenizers import VOCAB_SIZE, tokenizer_folder
from tests.tool_templates import BARE, MARKED, TAGGED

CHAT = "/v1/chat/completions"
ENGINE = Limits(n_slots=2, context_tokens=1024, cache_tokens=2048, chunk_tokens=64)
USER = [{"role": "user", "content": "Where is Mary?"}]
LOOK: dict[str, Any] = {
    "name": "look",
    "description": "Looks.",
    "parameters": {
        "type": "object",
        "properties": {"where": {"$ref": "#/$defs/place"}, "far": {"type": "boolean"}},
        "required": ["where", "far"],
        "additionalProperties": False,
        "$defs": {"place": {"enum": ["shop", "park"]}},
    },
}
WAIT: dict[str, Any] = {
    "name": "wait",
    "parameters": {
        "type": "object",
        "properties": {"hours": {"$ref": "#/$defs/place"}},
        "required": ["hours"],
        "additionalProperties": False,
        "$defs": {"place": {"type": "integer", "minimum": 1, "maximum": 9}},
    },
}
TOOLS = [{"type": "function", "function": function} for function in (LOOK, WAIT)]
STRICT = [{"type": "function", "function": {**function, "strict": True}} for function in (LOOK, WAIT)]


@pytest.fixture(scope="module", params=["torch-tagged", "mlx-tagged", "torch-marked", "torch-bare"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    backend, kind = request.param.split("-")
    template = {"tagged": TAGGED, "marked": MARKED, "bare": BARE}[kind]
    stale = {
        "vocab_size": VOCAB_SIZE,
        "bos_token_id": 1,
        "eos_token_id": 4,
        "pad_token_id": 0,
        "max_position_embeddings": 1024,
    }
    folder = tmp_path_factory.mktemp("dressed") / kind
    shutil.copytree(tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"), **stale), folder)
    tokenizer_folder("byte_level", folder, eos_token="<|im_end|>", unk_token="<|calls|>", chat_template=template)
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace("<unk>", "<|calls|>"))
    made = LocalModel(WorkerConfig(model=str(folder), id=kind, backend=backend, engine=ENGINE), folder)
    yield made
    made.close()


def _call(model: LocalModel) -> Caller:
    return Caller(create_app(LocalOperations(model), version="test", max_body_bytes=1 << 20), FakeOperations())


def _well_made(call: dict[str, Any], allowed: tuple[str, ...] = ("look", "wait")) -> None:
    function = call["function"]
    arguments = json.loads(function["arguments"])
    assert (call["type"], function["name"] in allowed) == ("function", True)
    if function["name"] == "look":
        assert set(arguments) == {"where", "far"}
        assert arguments["where"] in ("shop", "park")
        assert isinstance(arguments["far"], bool)
    else:
        assert list(arguments) == ["hours"]
        assert 1 <= arguments["hours"] <= 9


def _asked(seed: int, **fields: Any) -> dict[str, Any]:
    return {"messages": USER, "max_tokens": 300, "temperature": 1.0, "seed": seed, "tools": TOOLS, **fields}


def test_a_call_that_is_required_is_made(model: LocalModel) -> None:
    post, names = _call(model).post, set[str]()
    for seed in range(4):
        answer = post(CHAT, _asked(seed, tool_choice="required", parallel_tool_calls=False)).json()
        [choice] = answer.get("choices") or pytest.fail(str(answer))
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        [call] = choice["message"]["tool_calls"]
        _well_made(call)
        names.add(call["function"]["name"])
    assert names == {"look", "wait"}
    named = {"type": "function", "function": {"name": "wait"}}
    [choice] = post(CHAT, _asked(3, tool_choice=named)).json()["choices"]
    for call in choice["message"]["tool_calls"]:
        _well_made(call, ("wait",))


def test_a_stream_says_what_the_whole_answer_says(model: LocalModel) -> None:
    post, asked = _call(model).post, _asked(1, tool_choice="required", n=2, parallel_tool_calls=False)
    whole = post(CHAT, asked).json()["choices"]
    lines = post(CHAT, {**asked, "stream": True}).text.split("\n\n")
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    for index, choice in enumerate(whole):
        mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
        calls = [call for c in mine for call in c["delta"].get("tool_calls", [])]
        assert [call["function"] for call in calls] == [call["function"] for call in choice["message"]["tool_calls"]]
        assert [call["index"] for call in calls] == [0]
        assert "".join(c["delta"].get("content") or "" for c in mine) == ""
        assert mine[-1]["finish_reason"] == "tool_calls" == choice["finish_reason"]


def test_strict_arguments_keep_to_their_schema_where_the_model_may_call(model: LocalModel) -> None:
    """A hook makes the model begin a call; what follows is drawn."""
    form = model.tokenizer.tool_format
    assert form is not None
    client = Client(service=InProcessService(model))
    tools = tuple(
        Tool(f["name"], f.get("description", ""), json.dumps(f["parameters"], separators=(",", ":")))
        for f in (LOOK, WAIT)
    )
    prompt = client.tokenize(Input(messages=(Message("user", "Where is Mary?"),), tools=tools)).token_ids
    begin = client.tokenize((form.opening or "{").rstrip(), add_special_tokens=False).token_ids
    rows = np.eye(VOCAB_SIZE, dtype=np.float32)[list(begin)] * 1e4
    hooks = [to_json(steer("logits", row, positions=[len(prompt) - 1 + i])) for i, row in enumerate(rows)]
    asked = _asked(5, tools=STRICT, probewire={"hooks": hooks})
    answer = _call(model).post(CHAT, asked).json()
    [choice] = answer.get("choices") or pytest.fail(str(answer))
    assert answer["probewire"]["started"]["inputs"][0]["token_ids"] == list(prompt)
    assert choice["message"].get("tool_calls"), choice
    for call in choice["message"]["tool_calls"]:
        _well_made(call)


def test_without_a_choice_it_is_text(model: LocalModel) -> None:
    post = _call(model).post
    plain = post(CHAT, _asked(2, tool_choice="none", max_tokens=8)).json()
    same = post(CHAT, {"messages": USER, "max_tokens": 8, "temperature": 1.0, "seed": 2}).json()
    assert plain["choices"] == same["choices"], "none: the model is not told of them"
    told = post(CHAT, _asked(2, max_tokens=8)).json()
    assert told["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]
    assert told["choices"][0]["message"]["content"]
    assert "tool_calls" not in told["choices"][0]["message"]


def test_what_was_called_goes_on(model: LocalModel) -> None:
    called = {"id": "abc123xyz", "type": "function", "function": {"name": "look", "arguments": '{"where": "park"}'}}
    messages = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "abc123xyz", "content": "Not there."},
    ]
    answer = _call(model).post(CHAT, _asked(0, messages=messages, max_tokens=3, probewire={})).json()
    told = model.tokenizer.decode(answer["probewire"]["started"]["inputs"][0]["token_ids"])
    assert '"where": "park"' in told
    assert "Not there." in told
