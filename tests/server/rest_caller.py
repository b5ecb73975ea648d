"""Plain calls into the REST app over pretended operations, and what its answers hold."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import safetensors
from fake_model import FakeOperations
from fastapi import FastAPI

from probewire.server.api.http.app import create_app

HOOK = {"site": "resid_post.1", "capture": {}}
SAFETENSORS = {"accept": "application/safetensors"}


class Caller:
    """Plain calls into an app, without a socket."""

    def __init__(self, app: FastAPI, operations: FakeOperations) -> None:
        self.app = app
        self.operations = operations

    def __call__(self, method: str, path: str, body: object = None, **kwargs: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.request(method, path, **kwargs)

        if body is not None:
            kwargs["json"] = body
        return asyncio.run(call())

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return self("GET", path, **kwargs)

    def post(self, path: str, body: object = None, **kwargs: Any) -> httpx.Response:
        return self("POST", path, body, **kwargs)


def caller(**fake: Any) -> Caller:
    operations = FakeOperations(**fake)
    return Caller(create_app(operations, version="1.2.3", max_body_bytes=1 << 16), operations)


def error_of(response: httpx.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    return error


def sse(response: httpx.Response) -> list[tuple[str, Any]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.strip().split("\n\n")
    lines = [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]
    return [(block["event"], json.loads(block["data"])) for block in lines]


def safetensors_of(response: httpx.Response) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    assert response.headers["content-type"] == "application/safetensors"
    data = response.content
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    metadata = {key: json.loads(value) for key, value in header.get("__metadata__", {}).items()}
    return dict(safetensors.deserialize(data)), metadata
