"""Requests sent as they are written, so that bad ones reach the server."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import grpc
import numpy as np

from probewire.clients import Client, Tensor
from probewire.protos.operations import BY_CALL
from probewire.protos.wire.codec import to_json
from tests.apis.serving import DEADLINE_S, Served

__all__ = ["GOOD_HOOK", "PROMPT", "add", "called", "fill", "posted", "service_of"]

PROMPT = "When Mary and John"
GOOD_HOOK: dict[str, Any] = {"site": "resid_post.1", "capture": {}}


class _Service:
    """The operations of a client's transport as methods."""

    def __init__(self, client: Client) -> None:
        self._transport = client._transport

    def __getattr__(self, name: str) -> Callable[..., Any]:
        streams = BY_CALL[name].kind in ("events", "values")
        return partial(self._transport.listen if streams else self._transport.ask, name)


def service_of(client: Client) -> Any:
    """What carries the client's calls, asked without its help."""
    return _Service(client)


def add(values: Any, **where: Any) -> dict[str, Any]:
    """A hook that steers the middle layer."""
    return {
        "site": "resid_post.1",
        "edit": {"add": {"vector": to_json(Tensor.of(np.array(values, np.float32)))}},
        "where": where,
    }


STATUS = {"OK": 200, "INVALID_ARGUMENT": 422, "RESOURCE_EXHAUSTED": 413}


def fill(message: Any, data: dict[str, Any]) -> Any:
    """The contract's JSON as a message, unchecked: no value class of ours sees it."""
    for name, value in data.items():
        field, part = message.DESCRIPTOR.fields_by_name[name], getattr(message, name)
        if field.message_type is None:
            if field.is_repeated:
                part.extend(value)
            else:
                setattr(message, name, base64.b64decode(value) if field.type == field.TYPE_BYTES else value)
        elif field.is_repeated:
            for item in value:
                fill(part.add(), item)
        else:
            part.SetInParent()
            fill(part, {"values": value} if isinstance(value, list) else value)
    return message


def called(served: Served, method: str, request: bytes) -> tuple[str, list[bytes] | str]:
    """A call with bytes as they are: the messages of the answer, or what the status says."""
    try:
        return "OK", list(served.channel.unary_stream(f"/probewire.v1.{method}")(request, timeout=DEADLINE_S))
    except grpc.RpcError as error:
        return error.code().name, error.details() or ""


def posted(served: Served, path: str, body: object, read: Callable[[Any], str] = lambda body: "") -> tuple[str, str]:
    """Post JSON, or bytes as they are."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = served.web.post(path, content=content)
    if response.status_code == 200:
        return "OK", read(response)
    error = response.json()["error"]
    assert response.status_code == STATUS[error["code"]], response.text
    assert error["type"] == "invalid_request_error" or response.status_code == 413
    assert error["request_id"] == response.headers["x-request-id"]
    return error["code"], error["message"]
