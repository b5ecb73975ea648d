"""A worker with a real model is killed in the middle of its work: its requests end, on every API; nothing else does."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from probewire.clients import Client, Stream, Unavailable
from tests.apis.serving import BACKENDS, DEADLINE_S, Served, eventually, serving

PROMPT = "When Mary and John"
MESSAGES = [{"role": "user", "content": PROMPT}]


@pytest.fixture(scope="module")
def mortal(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    """A server of its own, so that no other test notices."""
    with serving(checkpoint, tmp_path_factory.mktemp("mortal"), "--slots", "4", "--cache-tokens", "8192") as served:
        yield served


@pytest.fixture
def clients(mortal: Served) -> Generator[list[Client]]:
    """Over gRPC and over HTTP."""
    with Client(f"grpc://{mortal.grpc}", timeout_s=DEADLINE_S) as first, Client(mortal.http) as second:
        yield [first, second]


def begun(client: Client, model: str, n: int) -> Stream:
    """A stream that has given its first token."""
    stream = client.stream(PROMPT, capture=["resid_post.*"], model=model, max_new_tokens=n, ignore_eos=True)
    assert next(stream).token is not None
    return stream


def lines(web: httpx.Client, path: str, model: str, stack: ExitStack) -> Iterator[str]:
    """The lines of a streamed chat, of which one has come."""
    body = {"model": model, "messages": MESSAGES, "max_tokens": 1500, "stream": True, "temperature": 0}
    found = stack.enter_context(web.stream("POST", path, json=body)).iter_lines()
    assert "choices" in next(found)
    return found


def test_its_requests_end_and_it_comes_back(mortal: Served, clients: list[Client], model: str) -> None:
    client = clients[0]
    [other] = [name for name in BACKENDS if name != model]

    def said() -> str:
        return client.generate(PROMPT, model=model, max_new_tokens=6, temperature=1.0, seed=1).text

    before, worker = said(), mortal.worker(model)
    with ExitStack() as stack:
        doomed = [stack.enter_context(begun(client, model, 1500)) for client in clients]
        paths = ("/v1/chat/completions", "/v1/chat/completions/with_activations")
        chats = [lines(mortal.web, path, model, stack) for path in paths]
        neighbour = stack.enter_context(begun(client, other, 200))
        worker.kill()
        death = rf"worker for model '{model}' died \(signal 9\); it is being restarted; retry"
        for stream in doomed:
            with pytest.raises(Unavailable, match=death) as raised:
                list(stream)
            assert raised.value.retry_after_s
        for chat in chats:
            last = [line for line in chat if line][-1]
            assert '"code":"UNAVAILABLE"' in last
            assert f"worker for model '{model}' died (signal 9)" in last
        assert sum(step.token is not None for step in neighbour) == 199, "the other model's stream goes on"
    with pytest.raises(Unavailable, match="died"):
        said()
    eventually(lambda: client.health().models[model] == "ready", "the model serves again")
    assert mortal.worker(model).pid != worker.pid
    assert said() == before
