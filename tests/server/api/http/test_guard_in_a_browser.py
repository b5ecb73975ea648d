"""A real page of another site, in a real browser, does its worst to a box without users."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from fake_model import FakeOperations
from http_server import listening

from probewire.protos import probewire_pb2 as pb
from probewire.server.api.grpc.service import RpcServer, admit_at_the_door
from probewire.server.api.http.app import create_app
from probewire.server.auth.access import Access
from tests.analysis.pages import in_a_browser, visited

pytestmark = [in_a_browser, pytest.mark.timeout(120)]

BROWSER = (
    "--host-resolver-rules=MAP evil.example 127.0.0.1, MAP tool.example 127.0.0.1",
    "--virtual-time-budget=60000",  # most of it is waiting for frames that are refused
)

ATTACK = """
const at = TARGET, json = "application/json";
const bodies = {
  "/v1/models/unload": {model: "fake/model"}, "/v1/models/load": {model: "org/any"}, "/v1/generate": {text: "Hi"},
  "/v1/sessions": {hooks: []}, "/v1/chat/completions": {messages: [{role: "user", content: "Hi"}]},
};
const read = [], done = [];
const tried = async (name, attempt) => {
  try { const got = await attempt(); if (got) read.push(`${name}: ${got}`); } catch (error) { void error; }
  done.push(name);
};
const seen = async (answer) => (answer.type === "opaque" ? "" : `${answer.status} ${(await answer.text()).slice(0, 60)}`);
const loaded = (element, address) => new Promise((resolve) => {
  element.onload = () => resolve(element);
  element.onerror = () => resolve(element);
  if (address) element.src = address;
  document.body.append(element);
  setTimeout(() => resolve(element), 1000);
});
const posted = async (path, body, enctype) => {
  const frame = document.createElement("iframe"), form = document.createElement("form");
  frame.name = `f${done.length}`;
  Object.assign(form, {method: "post", action: at + path, enctype, target: frame.name});
  const field = document.createElement("input");
  [field.name, field.value] = [JSON.stringify(body).slice(0, -1) + ', "x": "', '"}']; // = makes it JSON in text/plain
  form.append(field);
  document.body.append(form);
  const ended = loaded(frame);
  form.submit();
  await ended;
  try { return frame.contentDocument.body.textContent.slice(0, 60); } catch (error) { return ""; }
};
(async () => {
  for (const [path, body] of Object.entries(bodies)) {
    const data = JSON.stringify(body);
    for (const type of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", json]) {
      for (const mode of ["no-cors", "cors"]) {
        await tried(`fetch ${path} ${type} ${mode}`, async () => seen(await fetch(at + path, {
          method: "POST", mode, body: data, credentials: "include", headers: {"content-type": type}})));
      }
    }
    await tried(`key ${path}`, async () => seen(await fetch(at + path, {
      method: "POST", body: data, headers: {"content-type": json, "authorization": "Bearer x"}})));
    await tried(`beacon ${path}`, async () => void navigator.sendBeacon(at + path, new Blob([data], {type: "text/plain"})));
    for (const enctype of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]) {
      await tried(`form ${path} ${enctype}`, () => posted(path, body, enctype));
    }
  }
  for (const method of ["PUT", "DELETE", "PATCH"]) {
    await tried(method, async () => seen(await fetch(`${at}/v1/models/fake/model`, {method})));
  }
  for (const path of ["/v1/models", "/health", "/metrics", "/openapi.json", "/docs"]) {
    await tried(`read ${path}`, async () => seen(await fetch(at + path)));
    await tried(`script ${path}`, () => loaded(document.createElement("script"), at + path).then(() => ""));
    await tried(`image ${path}`, async () => {
      const image = await loaded(new Image(), at + path);
      return image.naturalWidth ? "an image" : "";
    });
    await tried(`frame ${path}`, async () => {
      const frame = await loaded(document.createElement("iframe"), at + path);
      return frame.contentDocument && frame.contentDocument.body.textContent.slice(0, 60);
    });
  }
  const out = document.createElement("pre");
  out.id = "out";
  out.textContent = JSON.stringify({origin: String(self.origin), read, done: done.length});
  document.body.append(out);
})();
"""

USE = """
const out = document.createElement("pre");
out.id = "out";
(async () => {
  const listed = await (await fetch(TARGET + "/v1/models")).json();
  const answer = await fetch(TARGET + "/v1/tokenize", {
    method: "POST", body: JSON.stringify({text: "Hi"}),
    headers: {"content-type": "application/json", "authorization": "Bearer x"}});
  const tokens = await answer.json();
  const bare = await fetch(TARGET + "/v1/tokenize", {
    method: "POST", body: JSON.stringify({text: "Hi"}), headers: {"content-type": "application/json"}});
  const refused = await fetch(TARGET + "/v1/tokenize", {method: "POST", body: "{}"});
  out.textContent = JSON.stringify({
    models: listed.data.length, ids: tokens.token_ids, id: answer.headers.get("x-request-id").slice(0, 4),
    bare: bare.status, refused: refused.status});
})().catch((error) => { out.textContent = JSON.stringify({error: String(error)}); }).finally(() => document.body.append(out));
"""


@dataclass
class Site:
    """Another server of this machine."""

    port: int
    script: str = ""
    """Of its only page."""


OVER_GRPC = """
const frame = new Uint8Array(FRAME), out = document.createElement("pre"), answers = [];
out.id = "out";
(async () => {
  for (const type of ["text/plain", "application/grpc", ""]) {
    for (const mode of ["no-cors", "cors"]) {
      try {
        const headers = type ? {"content-type": type, "te": "trailers"} : {};
        const answer = await fetch(TARGET + "/probewire.v1.Models/Unload", {method: "POST", mode, headers, body: frame});
        answers.push(answer.type);
      } catch (error) { answers.push("none"); }
    }
  }
  out.textContent = JSON.stringify({answers});
  document.body.append(out);
})();
"""


@contextmanager
def elsewhere() -> Generator[Site]:
    site = Site(0)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = page_of(site.script).encode()
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join(10)
        server.server_close()


def page_of(script: str) -> str:
    return f"<!doctype html><title>x</title><body><script>{script}</script>"


def aimed(script: str, port: int) -> str:
    return script.replace("TARGET", json.dumps(f"http://127.0.0.1:{port}"))


class Bystander(FakeOperations):
    """Counts what reaches it and is not counted yet."""

    touched = 0

    async def unload(self, model: str) -> None:
        self.touched += 1

    async def create_session(self, request: Any) -> Any:
        self.touched += 1


@pytest.mark.parametrize("page", ["http://evil.example", "http://127.0.0.1", "file"])
def test_it_changes_nothing_and_reads_nothing(tmp_path: Path, page: str) -> None:
    """Of another site, of another port of this machine (the same site, to a browser), and a file that was opened."""
    box = Bystander()
    with listening(create_app(box, version="test"), log_config=None) as (_, port), elsewhere() as site:
        site.script = aimed(ATTACK, port)
        address = f"{page}:{site.port}/"
        if page == "file":
            (tmp_path / "evil.html").write_text(page_of(site.script))
            address = (tmp_path / "evil.html").as_uri()
        found = visited(address, tmp_path, *BROWSER)
    assert found["done"] == 5 * 13 + 3 + 5 * 4
    assert found["read"] == []
    assert (box.touched, box.requests) == (0, [])


def test_a_page_that_the_operator_has_named_is_let_in(tmp_path: Path) -> None:
    with elsewhere() as site:
        address = f"http://tool.example:{site.port}"
        app = create_app(FakeOperations(), version="test", allowed_origins=[address])
        with listening(app, log_config=None) as (_, port):
            site.script = aimed(USE, port)
            found = visited(f"{address}/", tmp_path, *BROWSER)
    assert found == {"models": 1, "ids": [72, 105], "id": "req-", "bare": 200, "refused": 415}


@contextmanager
def grpc_api(box: Bystander, ca: trustme.CA | None) -> Generator[int]:
    """The port of the gRPC API over a box without users."""
    ports: list[int] = []
    started, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        server = RpcServer(box, admit_at_the_door(Access()), max_request_bytes=1 << 20)
        credentials = None
        if ca is not None:
            cert = ca.issue_cert("127.0.0.1")
            chain = b"".join(blob.bytes() for blob in cert.cert_chain_pems)
            credentials = grpc.ssl_server_credentials([(cert.private_key_pem.bytes(), chain)])
        ports.append(server.bind("127.0.0.1:0", credentials))
        await server.start()
        started.set()
        await asyncio.to_thread(stop.wait)
        await server.stop(0)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert started.wait(20)
        yield ports[0]
    finally:
        stop.set()
        thread.join(20)


@pytest.mark.parametrize("secure", [False, True], ids=["in the clear", "under TLS"])
def test_a_page_cannot_speak_grpc(tmp_path: Path, secure: bool) -> None:
    """gRPC looks at no Origin, and takes any content type: what keeps pages out is a header that no page may set."""
    box, ca = Bystander(), trustme.CA() if secure else None
    request = pb.ModelRequest(model="fake/model").SerializeToString()
    frame = [0, *len(request).to_bytes(4, "big"), *request]
    with elsewhere() as site, grpc_api(box, ca) as port:
        at = f"{'https' if secure else 'http'}://127.0.0.1:{port}"
        site.script = OVER_GRPC.replace("TARGET", json.dumps(at)).replace("FRAME", json.dumps(frame))
        found = visited(f"http://evil.example:{site.port}/", tmp_path, *BROWSER, "--ignore-certificate-errors")
        assert len(found["answers"]) == 6
        assert box.touched == 0
        root = None if ca is None else ca.cert_pem.bytes()
        channel = grpc.secure_channel(f"127.0.0.1:{port}", grpc.ssl_channel_credentials(root)) if root else None
        with channel or grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            call: Any = channel.unary_unary("/probewire.v1.Models/Unload")
            call(request, timeout=10)
        assert box.touched == 1, "the same request from a script"
