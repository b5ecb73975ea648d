"""A client that vanishes in the middle: what it held is free for the next one at once."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest

from probewire.clients import Client
from probewire.protos import probewire_pb2 as pb
from tests.apis.serving import DEADLINE_S, Served, eventually

LONG = 2400
"""New tokens. With its prompt it takes nearly the whole cache, so that nobody else is admitted beside it."""
PROMPT = "When Mary and John"


@pytest.fixture(scope="module")
def client(served: Served) -> Generator[Client]:
    with Client(f"grpc://{served.grpc}", timeout_s=DEADLINE_S) as client:
        yield client


@contextmanager
def posted(served: Served, path: str, body: dict[str, Any]) -> Generator[socket.socket]:
    """A bare connection that has sent a request, closed on leaving without a word."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(content)}\r\n\r\n"
    where = urlsplit(served.http)
    with socket.create_connection((where.hostname, where.port), timeout=DEADLINE_S) as connection:
        connection.sendall(head.encode() + content)
        yield connection


def grpc_cancelled(served: Served, model: str) -> None:
    request = pb.GenerateRequest(model=model, inputs=[pb.Input(name="input", text=PROMPT)])
    request.sampling.max_new_tokens, request.sampling.ignore_eos = LONG, True
    call = served.channel.unary_stream("/probewire.v1.Inference/Generate")(request.SerializeToString())
    for _ in range(3):
        assert next(call)
    call.cancel()


def client_closed(served: Served, model: str) -> None:
    with (
        Client(served.http) as client,
        client.stream(PROMPT, capture=["resid_post.*"], model=model, max_new_tokens=LONG, ignore_eos=True) as stream,
    ):
        next(stream)
        next(stream)


def _read_some(connection: socket.socket) -> None:
    received = b""
    while received.count(b"\n") < 20:
        received += connection.recv(1 << 16)
    assert received.startswith(b"HTTP/1.1 200")


def socket_closed(path: str, **body: Any) -> Callable[[Served, str], None]:
    """In the middle of a stream."""

    def vanish(served: Served, model: str) -> None:
        with posted(served, path, {"model": model, "stream": True, **body}) as connection:
            _read_some(connection)

    return vanish


def socket_closed_waiting(path: str, **body: Any) -> Callable[[Served, str], None]:
    """While the whole answer is still being made: nothing has come yet."""

    def vanish(served: Served, model: str) -> None:
        with posted(served, path, {"model": model, **body}) as connection:
            time.sleep(0.2)
            connection.settimeout(0.01)
            with pytest.raises(TimeoutError):
                connection.recv(1)

    return vanish


MESSAGES = [{"role": "user", "content": PROMPT}]
OURS = {"text": PROMPT, "sampling": {"max_new_tokens": LONG, "ignore_eos": True}}
NO_END = {"hooks": [{"site": "logits", "edit": {"replace": {"source": "zeros", "units": [257]}}}]}
"""OpenAI's dialect cannot ignore the end of the text; a logit of 0 makes it unlikely."""
GREEDY = {"max_tokens": LONG, "temperature": 0}

WAYS: dict[str, Callable[[Served, str], None]] = {
    "grpc cancelled": grpc_cancelled,
    "http client closed": client_closed,
    "event stream": socket_closed("/v1/generate", **OURS),
    "binary stream": socket_closed("/v1/generate", format="protobuf", **OURS),
    "waiting for json": socket_closed_waiting("/v1/generate", **OURS),
    "chat stream": socket_closed("/v1/chat/completions", messages=MESSAGES, probewire=NO_END, **GREEDY),
    "waiting for a chat": socket_closed_waiting("/v1/chat/completions", messages=MESSAGES, probewire=NO_END, **GREEDY),
    "neuroscope stream": socket_closed(
        "/v1/chat/completions/with_activations",
        messages=MESSAGES,
        activation_hooks=[{"layer_name": "transformer.h.1", "component": "residual"}],
        **GREEDY,
    ),
}


@pytest.fixture(scope="module")
def token_s(client: Client) -> dict[str, float]:
    """Seconds a token takes, by model."""
    found: dict[str, float] = {}
    for model in ("torch", "mlx"):
        made = client.generate(PROMPT, model=model, max_new_tokens=100, ignore_eos=True)
        found[model] = 1 / made.tokens_per_s
    return found


@pytest.mark.parametrize("way", WAYS)
def test_its_place_is_free_for_the_next(
    served: Served, client: Client, model: str, token_s: dict[str, float], way: str
) -> None:
    WAYS[way](served, model)
    started_s = time.monotonic()
    made = client.generate(PROMPT, model=model, max_new_tokens=200, ignore_eos=True)
    waited_s = time.monotonic() - started_s - (made.timings.total_s - made.timings.queued_s if made.timings else 0)
    assert len(made.only.new) == 200
    assert waited_s < 0.5 * LONG * token_s[model], "it waited for a generation that nobody reads"


def test_two_slots_are_free_again(served: Served, client: Client, model: str) -> None:
    """Both slots taken, both callers gone: the next ones are admitted, and then the worker rests."""
    for _ in range(3):
        streams = [client.stream(PROMPT, model=model, max_new_tokens=1000, ignore_eos=True) for _ in range(2)]
        for stream in streams:
            next(stream)
        for stream in streams:
            stream.close()
    assert len(client.generate(PROMPT, model=model, max_new_tokens=4, ignore_eos=True).only.new) == 4
    worker = served.worker(model)
    eventually(lambda: worker.cpu_percent(interval=0.3) < 30, "the worker rests")
