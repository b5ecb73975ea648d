"""What `--audit-prompts` writes of what was sent, whichever API it came to."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import gateway, served

from probewire.protos import probewire_pb2 as pb
from probewire.protos.model import GenerateRequest, Input, Message
from probewire.protos.wire.codec import to_proto
from probewire.server.api.grpc.service import admit_at_the_door
from probewire.server.api.http.app import create_app
from probewire.server.auth import audit as module
from probewire.server.auth.audit import prompt_of

TEXT = '{"interval_s": 0}'
SAID = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
SAMPLING = {"sampling": {"max_new_tokens": 2}}

CALLS: list[tuple[str, dict[str, Any], Any]] = [
    ("/v1/generate", {"text": TEXT, **SAMPLING}, [TEXT]),
    ("/v1/generate", {"token_ids": [1, 2, 3], **SAMPLING}, [[1, 2, 3]]),
    ("/v1/generate", {"messages": SAID, **SAMPLING}, [SAID]),
    ("/v1/run", {"token_ids": [4, 5]}, [[4, 5]]),
    ("/v1/gradients", {"token_ids": [4, 5], "targets": [{"metric": {"logit": {"token": 1}}}]}, [[4, 5]]),
    ("/v1/sweep", {"token_ids": [6], "targets": [{"metric": {"logit": {"token": 1}}}], "plans": [{}]}, [[6]]),
    ("/v1/chat/completions", {"messages": SAID, "max_tokens": 2}, [SAID]),
    ("/v1/completions", {"prompt": [8, 9], "max_tokens": 2}, [[8, 9]]),
    ("/v1/completions", {"prompt": TEXT, "max_tokens": 2}, [TEXT]),
]


def prompts(audit: Path) -> list[Any]:
    return [json.loads(line).get("prompts") for line in audit.read_text().splitlines() if "Inference" in line]


def test_what_was_sent_is_written_whichever_way_and_face_it_came(tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"

    async def scenario() -> None:
        async with asyncio.timeout(60), gateway("fake", audit=str(audit), audit_prompts=True) as (it, _):
            transport = httpx.ASGITransport(create_app(it, version="test", access=it.policy.access))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                for path, body, _ in CALLS:
                    await http.post(path, json=body | {"model": "fake"})
            async with served(it, streams=it.streams, admit=admit_at_the_door(it.policy.access)) as door:
                request = to_proto(
                    GenerateRequest((Input(TEXT, name="a"), Input(token_ids=(10, 11), name="b")))
                ).SerializeToString()
                async for _ in door.channel.unary_stream("/probewire.v1.Inference/Generate")(request):
                    pass

    asyncio.run(scenario())
    assert prompts(audit) == [*(expected for _, _, expected in CALLS), [TEXT, [10, 11]]]


def test_nothing_of_it_is_kept_unless_asked(tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"

    async def scenario() -> None:
        async with asyncio.timeout(60), gateway("fake", audit=str(audit)) as (it, server):
            call = server.generate(n=1000, interval_s=0.01, secret="yes")
            await call.read()
            assert [record.prompts for record in it.policy.records] == [()]
            call.cancel()

    asyncio.run(scenario())
    assert prompts(audit) == [None]
    assert "secret" not in audit.read_text()


def test_what_is_long_is_cut_and_says_how_long_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CHARS", 8)
    monkeypatch.setattr(module, "MAX_IDS", 3)
    monkeypatch.setattr(module, "MAX_MESSAGES", 2)

    def of(item: Input) -> object:
        asked: pb.GenerateRequest = to_proto(GenerateRequest((item,)))
        return prompt_of(asked.inputs[0])

    assert of(Input("eight ch")) == "eight ch"
    assert of(Input("nine char")) == "nine cha… (9 characters)"
    assert of(Input(token_ids=(1, 2, 3))) == [1, 2, 3]
    assert of(Input(token_ids=(1, 2, 3, 4))) == [1, 2, 3, "… (4 token ids)"]
    said = tuple(Message("user", text) for text in ("1234", "12345", "x"))
    assert of(Input(messages=said[:2])) == [
        {"role": "user", "content": "1234"},
        {"role": "user", "content": "1234… (5 characters)"},
    ]
    assert of(Input(messages=said)) == [
        {"role": "user", "content": "1234"},
        {"role": "user", "content": "1234… (5 characters)"},
        "… (3 messages)",
    ]
