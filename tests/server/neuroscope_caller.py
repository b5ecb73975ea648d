"""A client of NeuroScope's dialect over pretended operations, for the tests of that API."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from fake_model import FakeOperations
from fastapi import FastAPI

from probewire.protos.model import GenerateRequest, RunRequest
from probewire.protos.spec import (
    Hook,
)
from probewire.server.api.http.app import create_app

CHAT = "/v1/chat/completions/with_activations"
HOOKS = "/v1/activations/hooks"
PATCH = "/v1/activations/patch"
MESSAGES = [{"role": "user", "content": "Hi"}]
RESIDUAL = {"layer_name": "transformer.h.1", "component": "residual", "hook_id": "r"}
N_PROMPT = len("<user>Hi\n")


class Client:
    def __init__(self) -> None:
        self.operations = FakeOperations()
        self.app: FastAPI = create_app(self.operations, version="1")

    def __call__(
        self, method: str, path: str, body: object = None, *, who: str = "", address: str = "1.1.1.1"
    ) -> httpx.Response:
        async def call() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False, client=(address, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                headers = {"x-client-id": who} if who else {}
                return await client.request(method, path, json=body, headers=headers)

        return asyncio.run(call())

    def chat(self, *hooks: dict[str, Any], **extra: Any) -> dict[str, Any]:
        body = {"messages": MESSAGES, "activation_hooks": list(hooks), "max_tokens": 3, **extra}
        response = self("POST", CHAT, body)
        assert response.status_code == 200, response.text
        return response.json()

    def patch(self, *interventions: dict[str, Any], **extra: Any) -> dict[str, Any]:
        body = {"prompt": "abc", "baseline_prompt": "xyz", "interventions": list(interventions), "max_tokens": 2}
        response = self("POST", PATCH, {**body, **extra})
        assert response.status_code == 200, response.text
        return response.json()

    def plan(self) -> tuple[Hook, ...]:
        """The hooks of the last request."""
        request = self.operations.requests[-1]
        assert isinstance(request, GenerateRequest | RunRequest)
        return request.plan.hooks


def message_of(response: httpx.Response, status: int = 422) -> str:
    assert response.status_code == status, response.text
    return response.json()["error"]["message"]
