"""A shared box under attack: one real server with users, calls of any bytes on both APIs, and the answer that must not change."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil

from probewire.clients import Client
from probewire.protos import probewire_pb2 as pb
from probewire.server.auth.users import Users
from probewire.server.state.database import State
from tests.apis.serving import DEADLINE_S, Served, serving
from tests.saes import write_sae

__all__ = ["REFUSALS", "Box", "is_an_error", "open_box"]

REFUSALS = {
    "INVALID_ARGUMENT": 422,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 409,
    "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401,
    "UNIMPLEMENTED": 501,
}
"""Codes that blame the caller."""

MOST_MESSAGES = 50
"""Of a stream; the rest is cancelled, as a mutated request may ask for thousands of tokens."""


@dataclass(frozen=True, slots=True)
class Box:
    """The server and its users: ada and bob are researchers, vic a viewer, root an admin, eve was revoked."""

    served: Served
    keys: dict[str, str]
    scratch: Path

    def headers(self, user: str | None) -> dict[str, str]:
        return {} if user is None else {"authorization": f"Bearer {self.keys.get(user, user)}"}

    def grpc(self, method: str, data: bytes, user: str | None = "ada", **options: Any) -> tuple[str, list[bytes] | str]:
        """The messages of an answer, or what its status says."""
        path = method if method.startswith("/") else f"/probewire.v1.{method}"
        options = {"timeout": DEADLINE_S, "metadata": tuple(self.headers(user).items())} | options
        call: Any = self.served.channel.unary_stream(path)(data, **options)
        try:
            return "OK", list(islice(call, MOST_MESSAGES))
        except grpc.RpcError as error:
            return error.code().name, error.details() or ""
        finally:
            call.cancel()

    def http(self, method: str, path: str, user: str | None = "ada", **options: Any) -> httpx.Response:
        """A request whose path goes out as it is, dots and all."""
        url = httpx.URL(self.served.http).copy_with(raw_path=path.encode())
        return self.served.web.request(method, url, headers=self.headers(user) | options.pop("headers", {}), **options)

    def truth(self) -> tuple[Any, ...]:
        """What a good request says on both APIs: tokens, and the bytes of a capture."""
        hook = pb.Hook(site="resid_post.1", capture=pb.Capture())
        asked = pb.GenerateRequest(
            model="torch",
            inputs=[pb.Input(name="input", text="When Mary and John")],
            plan=pb.Plan(hooks=[hook]),
            sampling=pb.Sampling(max_new_tokens=4, ignore_eos=True),
        )
        code, answer = self.grpc("Inference/Generate", asked.SerializeToString())
        assert code == "OK", answer
        events = [event for data in answer for event in pb.Events.FromString(data).events]
        body = {"text": "When Mary and John", "hooks": [{"site": "resid_post.1", "capture": {}}]}
        said = self.http("POST", "/v1/generate", json=body | {"sampling": {"max_new_tokens": 4, "ignore_eos": True}})
        assert said.status_code == 200, said.text
        tokens = [event.token.id for event in events if event.HasField("token")]
        assert [token["id"] for token in said.json()["tokens"]] == tokens
        return tokens, [event.tensor_frame.data for event in events if event.HasField("tensor_frame")]

    def pids(self) -> tuple[int, int]:
        """The gateway's process and the worker's."""
        return self.served.pid, self.served.worker("torch").pid

    @property
    def gateway(self) -> psutil.Process:
        return psutil.Process(self.served.pid)


@contextmanager
def open_box(checkpoint: Path, scratch: Path) -> Generator[Box]:
    """One with torch alone: what is tested lies before the backends, but for plans, which they check alike."""
    state = State(scratch / "state")
    users, roles = Users(state), {"ada": "researcher", "bob": "researcher", "vic": "viewer", "root": "admin"}
    keys = {name: users.add(name, role) for name, role in (*roles.items(), ("eve", "viewer"))}
    users.revoke("eve")
    state.close()
    with serving(checkpoint, scratch, "--slots", "4", backends=["torch"]) as served:
        with Client(f"grpc://{served.grpc}", api_key=keys["root"]) as client:
            client.load_sae(write_sae(scratch / "sae"), name="sae", shared=True)
        yield Box(served, keys, scratch)


def is_an_error(response: httpx.Response) -> str:
    """The code of an answer that is documented as an error in all its parts."""
    assert response.headers["content-type"] == "application/json", response.text
    error = response.json()["error"]
    assert set(error) <= {"message", "type", "param", "code", "retry_after_s", "request_id"}
    assert error["message"]
    assert error["request_id"] == response.headers["x-request-id"]
    if response.status_code not in (405, 413):
        assert REFUSALS[error["code"]] == response.status_code, response.text
    return error["code"]
