"""`probewire mcp` before a real box with users: the SDK's client over stdio and over HTTP, each with a key of its own."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Generator
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client as McpClient
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from probewire.server.auth.users import Users
from probewire.server.state.database import State
from tests.apis.serving import Served, eventually, serving

Keys = dict[str, str]
GENERATE = {"prompts": ["When Mary and John"], "max_new_tokens": 4}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("box")


@pytest.fixture(scope="module")
def keys(scratch: Path) -> Keys:
    state = State(scratch / "state")
    users = Users(state)
    made = {
        "ada": users.add("ada", "researcher"),
        "bob": users.add("bob", "researcher"),
        "vic": users.add("vic", "viewer"),
    }
    state.close()
    return made


@pytest.fixture(scope="module")
def box(checkpoint: Path, scratch: Path, keys: Keys) -> Generator[Served]:
    with serving(checkpoint, scratch, backends=("torch",)) as served:
        yield served


def command(box: Served, *options: str) -> list[str]:
    return [sys.executable, "-m", "probewire.cli", "mcp", "--url", f"grpc://{box.grpc}", *options]


@pytest.fixture(scope="module")
def url(box: Served) -> Generator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(command(box, "--http", f"127.0.0.1:{port}", "--may-change")) as process:
        address = f"http://127.0.0.1:{port}/mcp"

        def listens() -> bool:
            try:
                return httpx.post(address, json={}, trust_env=False).status_code == 401
            except httpx.TransportError:
                return False

        eventually(listens, "the MCP server listens")
        yield address
        process.terminate()


def over_stdio(box: Served, key: str, ask: Callable[[McpClient], Awaitable[Any]]) -> Any:
    async def whole() -> Any:
        [program, *args] = command(box)
        environment = {**os.environ, "PROBEWIRE_API_KEY": key}
        async with McpClient(StdioServerParameters(command=program, args=args, env=environment)) as agent:
            return await ask(agent)

    return asyncio.run(whole())


def over_http(url: str, key: str, ask: Callable[[McpClient], Awaitable[Any]]) -> Any:
    async def whole() -> Any:
        headers = {"Authorization": f"Bearer {key}"}
        async with (
            httpx2.AsyncClient(headers=headers, trust_env=False, timeout=60) as web,
            McpClient(streamable_http_client(url, http_client=web)) as agent,
        ):
            return await ask(agent)

    return asyncio.run(whole())


async def _works(agent: McpClient) -> tuple[Any, Any]:
    return (await agent.list_tools()).tools, await agent.call_tool("generate", GENERATE)


def test_both_ways_say_the_same(box: Served, url: str, keys: Keys) -> None:
    listed, stdio = over_stdio(box, keys["ada"], _works)
    more, http = over_http(url, keys["ada"], _works)
    assert not stdio.is_error
    assert stdio.structured_content == http.structured_content
    assert {tool.name for tool in more} - {tool.name for tool in listed} == {
        "load_sae",
        "unload_sae",
        "load_variant",
        "unload_variant",
    }


def test_a_key_may_what_its_role_may(url: str, keys: Keys) -> None:
    async def ask(agent: McpClient) -> tuple[Any, Any]:
        return await agent.call_tool("describe", {}), await agent.call_tool("generate", GENERATE)

    told, refused = over_http(url, keys["vic"], ask)
    assert not told.is_error
    assert refused.is_error
    assert "PERMISSION_DENIED" in refused.content[0].text


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}])
def test_nobody_enters_without_a_key(url: str, header: dict[str, str]) -> None:
    answer = httpx.post(url, json={}, headers=header, trust_env=False)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert "key" in answer.json()["error"]


def test_a_page_of_another_name_is_refused(url: str, keys: Keys) -> None:
    headers = {"Authorization": f"Bearer {keys['ada']}", "Host": "evil.example", "Accept": "application/json"}
    assert httpx.post(url, json={}, headers=headers, trust_env=False).status_code in (403, 421)


def test_a_revoked_key_ends_it(box: Served, url: str, keys: Keys, scratch: Path) -> None:
    async def ask(agent: McpClient) -> tuple[Any, Any]:
        before = await agent.call_tool("describe", {})
        await asyncio.to_thread(_revoke, scratch, "bob")
        try:
            return before, await agent.call_tool("describe", {})
        except Exception as error:  # noqa: BLE001 - over HTTP the transport itself is refused
            return before, error

    [stdio_before, stdio_after] = over_stdio(box, keys["bob"], ask)
    assert not stdio_before.is_error
    assert "UNAUTHENTICATED" in stdio_after.content[0].text
    assert (
        httpx.post(url, json={}, headers={"Authorization": f"Bearer {keys['bob']}"}, trust_env=False).status_code == 401
    )


def _revoke(scratch: Path, name: str) -> None:
    state = State(scratch / "state")
    Users(state).revoke(name)
    state.close()


def test_beyond_this_machine_it_wants_tls_and_keys(box: Served) -> None:
    done = subprocess.run(command(box, "--http", "0.0.0.0:9"), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--tls-cert" in done.stderr
    done = subprocess.run(command(box, "--http", "nowhere"), capture_output=True, text=True, timeout=60, check=False)
    assert "--http takes HOST:PORT" in done.stderr
