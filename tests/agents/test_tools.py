"""The tools over the SDK's own client, in memory, on a tiny real model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mcp import Client as McpClient

from probewire.agents.answers import MAX_BYTES, bounded
from probewire.agents.boxes import Boxes
from probewire.agents.server import make_server
from probewire.clients import AsyncClient, Client, LogitDifference, steer
from probewire.server.config import WorkerConfig
from probewire.server.worker.inprocess import InProcessService
from probewire.server.worker.model import LocalModel
from tests.tiny_models import tiny_checkpoint

HELLO = "When Mary and John"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalModel]:
    folder = tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny"))
    made = LocalModel(WorkerConfig(model=str(folder), id="tiny"), folder)
    yield made
    made.close()


@pytest.fixture(scope="module")
def own(model: LocalModel) -> Client:
    return Client(service=InProcessService(model))


def asked(model: LocalModel, ask: Callable[[McpClient], Awaitable[Any]], *, may_change: bool = False) -> Any:
    """What an agent gets of the server."""

    async def whole() -> Any:
        boxes = Boxes(lambda _: AsyncClient(service=InProcessService(model)))
        server = make_server(boxes, version="test", may_change=may_change)
        async with McpClient(server) as agent:
            return await ask(agent)

    return asyncio.run(whole())


def call(served: LocalModel, tool: str, /, **arguments: Any) -> dict[str, Any]:
    """The answer of one tool, which must be one."""
    answer = asked(served, lambda agent: agent.call_tool(tool, arguments))
    assert not answer.is_error, answer.content
    assert json.loads(answer.content[0].text) == answer.structured_content, "whoever reads text alone reads the same"
    return answer.structured_content


def error(served: LocalModel, tool: str, /, **arguments: Any) -> str:
    answer = asked(served, lambda agent: agent.call_tool(tool, arguments))
    assert answer.is_error
    return answer.content[0].text


def test_tools_say_what_they_are_and_change_nothing_unless_told(model: LocalModel) -> None:
    listed = asked(model, lambda agent: agent.list_tools()).tools
    assert all(tool.annotations.read_only_hint and len(tool.description or "") > 20 for tool in listed)
    assert not any("load" in tool.name for tool in listed)
    more = asked(model, lambda agent: agent.list_tools(), may_change=True).tools
    changing = {tool.name: tool.annotations for tool in more if not tool.annotations.read_only_hint}
    assert set(changing) == {"load_sae", "unload_sae", "load_variant", "unload_variant"}
    assert {name for name, told in changing.items() if told.destructive_hint} == {"unload_sae", "unload_variant"}
    for tool in more:
        assert "ctx" not in tool.input_schema["properties"]


def test_it_is_described(model: LocalModel, own: Client) -> None:
    told, info = call(model, "describe"), own.describe()
    assert told["model"]["n_layers"] == info.n_layers
    assert {site["site"] for site in told["sites"]} >= {"resid_post.LAYER", "mlp_act.LAYER", "logits"}
    tokens = call(model, "tokenize", prompt=HELLO)
    assert [row[2] for row in tokens["tokens"]] == list(own.tokenize(HELLO).token_ids)


def test_generations_are_the_clients_own(model: LocalModel, own: Client) -> None:
    vector = np.random.default_rng(0).normal(size=64).astype(np.float32)
    hook = {"site": "resid_post.1", "edit": {"add": {"vector": vector.tolist(), "alpha": 2.0}}}
    told = call(
        model,
        "generate",
        prompts=[HELLO, [{"role": "user", "content": "Hi"}]],
        max_new_tokens=6,
        hooks=[hook],
        capture=["resid_post.2"],
    )
    expected = own.generate(
        HELLO, max_new_tokens=6, hooks=steer("resid_post.1", vector, alpha=2.0), capture="resid_post.2"
    )
    one, other = told["answers"]
    assert (one["text"], one["ended_by"]) == (expected.text, expected.only.finish_reason)
    rows = expected["resid_post.2"]
    last = one["captures"]["resid_post.2"]["rows"][-1]
    assert last["norm"] == pytest.approx(np.linalg.norm(rows[-1]), rel=1e-5)
    assert last["top"][0][0] == int(np.abs(rows[-1]).argmax())
    assert (
        other["text"]
        == own.generate(
            [{"role": "user", "content": "Hi"}], max_new_tokens=6, hooks=steer("resid_post.1", vector, alpha=2.0)
        ).text
    )


def test_a_form_is_kept_to(model: LocalModel) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    [told] = call(model, "generate", prompts=[HELLO], json_schema=schema, max_new_tokens=100, temperature=1.0)[
        "answers"
    ]
    assert json.loads(told["text"])["a"] in (True, False)


def test_activations_are_the_runs_own(model: LocalModel, own: Client) -> None:
    [told] = call(model, "read_activations", prompts=[HELLO], sites=["mlp_act.0", "resid_post.*"], last_only=False)[
        "answers"
    ]
    run = own.run(HELLO, capture=["mlp_act.0", "logits"])
    rows = told["sites"]["mlp_act.0"]["rows"]
    assert [row["norm"] for row in rows] == pytest.approx(np.linalg.norm(run["mlp_act.0"], axis=-1)[-16:], rel=1e-5)
    assert set(told["sites"]) == {"mlp_act.0", "resid_post.0", "resid_post.1", "resid_post.2"}
    logits = run["logits"][-1].astype(float)
    logits -= logits.max()
    assert told["next"][0][1] == pytest.approx(-np.log(np.exp(logits).sum()), rel=1e-4)


def test_steering_is_the_difference_of_means(model: LocalModel, own: Client) -> None:
    told = call(
        model,
        "steer",
        prompt=HELLO,
        site="resid_post.1",
        towards=["aa", "ab"],
        away=["zz"],
        strengths=[0, 3],
        max_new_tokens=8,
    )
    a, b, z = (own.run(text, capture="resid_post.1")["resid_post.1"][-1] for text in ("aa", "ab", "zz"))
    vector = (a + b) / 2 - z
    assert told["norm_of_difference"] == pytest.approx(np.linalg.norm(vector), rel=1e-4)
    plain, pushed = (item["text"] for item in told["answers"])
    assert plain == own.generate(HELLO, max_new_tokens=8).text
    assert pushed == own.generate(HELLO, max_new_tokens=8, hooks=steer("resid_post.1", vector, alpha=3.0)).text


def test_patching_everything_gives_the_other_prompt(model: LocalModel, own: Client) -> None:
    told = call(model, "patch", clean="Mary x", corrupt="John x", answer="a", wrong="b", positions=[-1, 2])
    ids = [own.token(text) for text in "ab"]
    logits = {
        name: own.run(text, capture="logits")["logits"][-1]
        for name, text in (("clean", "Mary x"), ("corrupt", "John x"))
    }
    for name, row in logits.items():
        assert told[name] == pytest.approx(row[ids[0]] - row[ids[1]], rel=1e-4)
    rows = {(row["layer"], row["position"]): row for row in told["patched"]}
    assert len(rows) == 6
    assert rows[2, -1]["restored"] == pytest.approx(1.0, abs=1e-4), "behind the last layer the last row is all there is"
    assert rows[2, 2]["restored"] == pytest.approx(0.0, abs=1e-4), "and no other row is anything"


def test_attribution_is_value_times_gradient(model: LocalModel, own: Client) -> None:
    told = call(model, "attribute", prompt=HELLO, answer="a", wrong="b", sites=["mlp_act.1"], top=3)
    ids = [own.token(text) for text in "ab"]
    found = own.gradients(HELLO, LogitDifference((ids[0],), (ids[1],)), at="mlp_act.1", capture="mlp_act.1").only
    product = found.captures["mlp_act.1"].astype(float) * found.gradients["mlp_act.1"]
    site = told["value_times_gradient"]["mlp_act.1"]
    assert [row[2] for row in site["by_position"]] == pytest.approx(list(product.sum(axis=1)), rel=1e-4)
    assert abs(site["largest"][0]["value"]) == pytest.approx(np.abs(product).max(), rel=1e-4)
    assert told["metric"] == pytest.approx(found.metric, rel=1e-4)


def test_what_is_loaded_is_listed_and_what_is_not_is_said(model: LocalModel, tmp_path: Path) -> None:
    assert call(model, "list_saes") == {"saes": []}
    assert call(model, "list_variants") == {"variants": []}
    assert "NOT_FOUND" in error(model, "generate", prompts=[HELLO], variant=["none"])
    assert "no SAE 'none' is loaded for you; loaded: none" in error(model, "latents", prompt=HELLO, sae="none")
    told = asked(model, lambda agent: agent.call_tool("load_variant", {"source": str(tmp_path)}), may_change=True)
    assert told.is_error, "a folder of the agent's machine is never read for it"


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("generate", {"prompts": []}, "at least 1"),
        ("generate", {"prompts": ["x"] * 9}, "at most 8"),
        ("generate", {"prompts": ["x"], "max_new_tokens": 257}, "256"),
        (
            "generate",
            {"prompts": ["x"], "hooks": [{"site": "resid_post.99", "edit": {"scale": {"factor": 0}}}]},
            "resid_post.99",
        ),
        ("generate", {"prompts": ["x"], "hooks": [{"sight": "x"}]}, "unknown fields"),
        ("read_activations", {"prompts": ["x"], "sites": ["resid.1"]}, "resid"),
        ("patch", {"clean": "a", "corrupt": "b", "answer": "two words", "wrong": "b"}, "not one"),
        ("steer", {"prompt": "x", "site": "resid_post.1", "towards": [], "away": ["a"]}, "at least 1"),
        ("describe", {"model": "other"}, "NOT_FOUND"),
    ],
)
def test_what_cannot_be_is_told(model: LocalModel, tool: str, arguments: dict[str, Any], message: str) -> None:
    assert message in error(model, tool, **arguments)


def test_long_answers_are_cut_and_say_so(model: LocalModel) -> None:
    told = call(
        model, "read_activations", prompts=["x" * 100] * 8, sites=["mlp_act.*", "resid_post.*", "z.*"], last_only=False
    )
    assert len(json.dumps(told)) <= MAX_BYTES
    assert told["truncated"]
    assert bounded({"a": [1, 2]}) == {"a": [1, 2]}
    assert "error" in bounded({"a": "x" * MAX_BYTES})
