"""interp-engine's own server, in an environment of its own, and its two calls that have a like in ours."""

from __future__ import annotations

import base64
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import ml_dtypes
import numpy as np
from child import log_file
from environments import environment
from numpy.typing import NDArray
from servers import START_S, stop

__all__ = ["PEER", "Peer", "peer", "peer_python"]

PEER = "interp-engine[server]==1.14.2"
TIMEOUT_S = 600.0


class Peer:
    """Calls on a running server. Any thread may use it."""

    def __init__(self, url: str) -> None:
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False)

    def generate(self, prompt: list[int], n_new: int) -> int:
        """Greedy, in one answer, which costs it less than a streamed one. Gives the number of tokens."""
        asked = {"max_tokens": n_new, "temperature": 0.0, "stop_at_eos": False, "stream": False}
        answer = self._post("/v1/generate", {"prompt_token_ids": prompt, **asked})
        if len(answer["token_ids"]) != n_new:
            raise RuntimeError(f"asked for {n_new} tokens, got {len(answer['token_ids'])}")
        return n_new

    def capture(self, prompt: list[int], points: list[str]) -> dict[str, NDArray[Any]]:
        """Every row of the points as bfloat16 arrays, [pos, d_model] each."""
        asked = {"prompt_token_ids": prompt, "points": points, "output_dtype": "bfloat16"}
        return {name: _array(payload) for name, payload in self._post("/v1/capture", asked)["activations"].items()}

    def ready(self) -> bool:
        """Whether it has loaded. Raises RuntimeError when it never will."""
        try:
            answer = self._http.get("/health")
        except httpx.TransportError:
            return False
        if answer.json()["status"] == "failed":
            raise RuntimeError(f"{PEER} could not load the model: {answer.json()}")
        return answer.is_success

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        answer = self._http.post(path, json=body)
        if not answer.is_success:
            raise RuntimeError(f"{PEER} answered {answer.status_code}: {answer.text[:500]}")
        return answer.json()


def _array(payload: dict[str, Any]) -> NDArray[Any]:
    assert payload["dtype"] == "bfloat16"
    flat: NDArray[Any] = np.frombuffer(base64.b64decode(payload["data"]), dtype=np.dtype(ml_dtypes.bfloat16))
    return flat.reshape(payload["shape"])


def peer_python(given: str) -> str:
    """An interpreter that has the peer: the one given, or one in build/bench that is made now if it is not there."""
    return given or environment("interp-engine", PEER)


@contextmanager
def peer(python: str, folder: Path) -> Generator[Peer]:
    """Its server with the same checkpoint: eager (its only backend without CUDA), bfloat16, its own defaults else."""
    log, port = log_file("interp-engine"), _free_port()
    options = ["--model", str(folder), "--backend", "eager", "--device", "cpu", "--dtype", "bfloat16"]
    command = [python, "-m", "interp_engine.server", *options, "--port", str(port), "--log-level", "warning"]
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
        calls = Peer(f"http://127.0.0.1:{port}")
        try:
            _wait(server, calls, log)
            yield calls
        finally:
            calls.close()
            stop(server)


def _wait(server: subprocess.Popen[bytes], calls: Peer, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while not calls.ready():
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{PEER} did not start; its last words:\n{log.read_text()[-2000:]}")
        time.sleep(0.3)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
