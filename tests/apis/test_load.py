"""Many clients at once on a shared box, for a while: no wrong answer, no 5xx, nothing left behind.

Every good answer is compared with what the same request brought alone: ten seconds by default, ten minutes with `-m slow`.
"""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import psutil
import pytest

from probewire.clients import Client
from probewire.protos.edits import Add
from probewire.protos.errors import ProbewireError, ResourceExhausted
from probewire.protos.model import GenerateRequest, Input, Revised, Sampling, Started, Token
from probewire.protos.sessions import CreateSessionRequest, UpdateSessionRequest
from probewire.protos.spec import Capture, Hook, Plan
from probewire.protos.tensors import Tensor
from probewire.server.auth.users import Users
from probewire.server.state.database import State
from tests.apis.asking import service_of
from tests.apis.serving import BACKENDS, DEADLINE_S, Served, eventually, serving

log = logging.getLogger(__name__)

N_CLIENTS = 32
PROMPTS = ("When Mary and John", "The capital of", "x", "To be or not to be, that is the question: whether")
TOLERANCE = 1e-4  # relative, float32
VECTORS = [Tensor.of(np.random.default_rng(i).standard_normal(64).astype(np.float32)) for i in range(2)]
FLAT_BYTES = 48 << 20
FLAT_FILES = 16
"""What memory and open files may differ by between the warm-up and the end: allocators breathe, leaks grow."""

Solo = dict[Any, Any]


@dataclass
class Tally:
    """What happened, from all threads."""

    done: Counter[str] = field(default_factory=Counter[str])
    wrong: list[str] = field(default_factory=list[str])


@pytest.fixture(scope="module")
def box(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Served, list[str]]]:
    scratch = tmp_path_factory.mktemp("load")
    state = State(scratch / "state")
    keys = [Users(state).add(name, "researcher") for name in ("ada", "bob", "eve", "kim")]
    state.close()
    with serving(checkpoint, scratch, "--slots", "8", "--cache-tokens", "8192", "--chunk", "64") as served:
        yield served, keys


class Visitor:
    """One client: a user at random, a transport at random, one thing after the other."""

    def __init__(self, served: Served, key: str, seed: int, solo: Solo, tally: Tally) -> None:
        self.served, self.key, self.solo, self.tally = served, key, solo, tally
        self.random = random.Random(seed)
        self.client = Client(f"grpc://{served.grpc}" if seed % 2 else served.http, api_key=key, timeout_s=DEADLINE_S)
        self.service = service_of(self.client)

    def visit(self) -> None:
        what: Callable[[], None] = self.random.choice(
            [
                self.generate,
                self.generate,
                self.capture,
                self.capture,
                self.run,
                self.live,
                self.cancel,
                self.vanish,
                self.bad,
            ]
        )
        name = what.__name__
        try:
            what()
            self.tally.done[name] += 1
        except ResourceExhausted:
            self.tally.done["told to wait"] += 1
            time.sleep(0.05)
        except (ProbewireError, AssertionError) as error:
            self.tally.wrong.append(f"{name}: {type(error).__name__}: {error}")

    def choice(self) -> tuple[str, str, int]:
        return self.random.choice(BACKENDS), self.random.choice(PROMPTS), self.random.choice((3, 9, 30))

    def generate(self) -> None:
        model, prompt, n = key = self.choice()
        found = self.client.generate(prompt, model=model, max_new_tokens=n, temperature=0.8, seed=n, ignore_eos=True)
        assert list(found.token_ids) == self.solo["generate", *key]

    def capture(self) -> None:
        model, prompt, n = key = self.choice()
        found = self.client.generate_with_activations(
            prompt, ["resid_post.*"], model=model, max_new_tokens=n, ignore_eos=True
        )
        ids, rows = self.solo["capture", *key]
        assert list(found.token_ids) == ids
        close(found.only.captures.stack("resid_post"), rows)

    def run(self) -> None:
        model, prompt, _ = self.choice()
        found = self.client.run(prompt, capture=["logits"], model=model)
        close(found["logits"], self.solo["run", model, prompt])

    def live(self) -> None:
        """Steer, and change the steering once some tokens are out: the start is as with the first plan alone."""
        model, prompt, _ = self.choice()
        session = self.service.create_session(CreateSessionRequest(steering(0), model))
        try:
            self._follow(model, prompt, session.id)
        finally:
            self.service.delete_session(session.id)

    def _follow(self, model: str, prompt: str, session: str) -> None:
        sampling = Sampling(max_new_tokens=30, ignore_eos=True)
        ids: list[int] = []
        revisions: list[int] = []
        told = 0
        for event in self.service.generate(
            GenerateRequest((Input(prompt),), model, sampling=sampling, session=session)
        ):
            if isinstance(event, Token):
                ids.append(event.id)
                revisions.append(event.revision)
                if len(ids) == 5:
                    self.service.update_session(UpdateSessionRequest(session, steering(1)))
            told += isinstance(event, Revised)
        before = revisions.count(1)
        assert revisions == sorted(revisions)
        assert before >= 5
        assert told == (before < 30)
        assert ids[:before] == self.solo["live", model, prompt][:before]

    def cancel(self) -> None:
        model, prompt, _ = self.choice()
        with self.client.stream(
            prompt, capture=["resid_post.*"], model=model, max_new_tokens=500, ignore_eos=True
        ) as s:
            for _ in range(self.random.randrange(4)):
                next(s)

    def vanish(self) -> None:
        """A connection that closes without a word."""
        model, prompt, _ = self.choice()
        where = urlsplit(self.served.http)
        body = b'{"model": "%s", "text": "%s", "stream": true, "sampling": {"max_new_tokens": 500}}'
        content = body % (model.encode(), prompt.encode())
        head = f"POST /v1/generate HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {self.key}\r\n"
        with socket.create_connection((where.hostname, where.port), timeout=DEADLINE_S) as connection:
            connection.sendall(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
            connection.recv(self.random.choice((1, 600)))

    def bad(self) -> None:
        """Each is refused with its own code, and harms nobody."""
        model = self.random.choice(BACKENDS)
        bad: list[dict[str, Any]] = [
            {"capture": ["resid_post.99"]},
            {"capture": ["nonsense"]},
            {"hooks": [Hook("resid_post.0", edit=Add(Tensor.of(np.ones(3, np.float32))))]},
            {"session": "ses-none"},
            {"max_new_tokens": 100_000},
        ]
        try:
            self.client.generate("hello", model=model, **self.random.choice(bad))
        except ProbewireError as error:
            if error.code.value.http >= 500:
                raise
        else:
            raise AssertionError("a bad request was answered")


def steering(i: int) -> Plan:
    return Plan((Hook("resid_post.0", edit=Add(VECTORS[i], alpha=2.0)), Hook("resid_post.1", capture=Capture())))


def close(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> None:
    assert found.shape == expected.shape
    error = np.abs(found - expected).max() / max(1.0, float(np.abs(expected).max()))
    assert error <= TOLERANCE, f"relative error {error:.1e}"


def alone(served: Served, key: str) -> Solo:
    """Every answer that the visitors will ask for, one request at a time."""
    solo: Solo = {}
    with Client(f"grpc://{served.grpc}", api_key=key) as client:
        service = service_of(client)
        for model in BACKENDS:
            for prompt in PROMPTS:
                solo["run", model, prompt] = client.run(prompt, capture=["logits"], model=model)["logits"]
                session = service.create_session(CreateSessionRequest(steering(0), model))
                sampling = Sampling(max_new_tokens=30, ignore_eos=True)
                asked = GenerateRequest((Input(prompt),), model, sampling=sampling, session=session.id)
                events = list(service.generate(asked))
                assert isinstance(events[0], Started)
                solo["live", model, prompt] = [e.id for e in events if isinstance(e, Token)]
                service.delete_session(session.id)
                for n in (3, 9, 30):
                    sampled = client.generate(
                        prompt, model=model, max_new_tokens=n, temperature=0.8, seed=n, ignore_eos=True
                    )
                    solo["generate", model, prompt, n] = list(sampled.token_ids)
                    greedy = client.generate_with_activations(
                        prompt, ["resid_post.*"], model=model, max_new_tokens=n, ignore_eos=True
                    )
                    rows = greedy.only.captures.stack("resid_post")
                    solo["capture", model, prompt, n] = (list(greedy.token_ids), rows)
    return solo


@dataclass(frozen=True)
class Footprint:
    """Of one process."""

    memory: int
    files: int


def footprints(served: Served) -> dict[str, Footprint]:
    processes = {"gateway": psutil.Process(served.pid)} | {model: served.worker(model) for model in BACKENDS}
    return {name: Footprint(p.memory_info().rss, p.num_fds()) for name, p in processes.items()}


def idle(served: Served, key: str) -> bool:
    """Nothing runs, and the engines' own caches hold nothing."""
    report = httpx.get(f"{served.http}/v1/activity", headers={"authorization": f"Bearer {key}"}, trust_env=False).json()
    held = [m["status"][name] for m in report["models"] for name in ("running", "waiting", "held", "cache_held")]
    return not any(held) and not report["requests"]


def load(box: tuple[Served, list[str]], seconds: float) -> None:
    served, keys = box
    tally, solo = Tally(), alone(served, keys[0])
    end_s = time.monotonic() + seconds

    def live(seed: int) -> None:
        visitor = Visitor(served, keys[seed % len(keys)], seed, solo, tally)
        with visitor.client:
            while time.monotonic() < end_s and len(tally.wrong) < 20:
                visitor.visit()

    threads = [threading.Thread(target=live, args=(seed,)) for seed in range(N_CLIENTS)]
    for thread in threads:
        thread.start()
    time.sleep(seconds / 3)
    warm = footprints(served)
    for thread in threads:
        thread.join()
    eventually(lambda: idle(served, keys[0]), "nothing runs and no cache is held")
    last = footprints(served)
    log.info("%g s: %s", seconds, dict(tally.done))
    for name, before in warm.items():
        log.info("%s: %s → %s", name, before, last[name])
    assert tally.wrong == []
    assert len(tally.done) >= 7, "every kind of visit happened"
    for name, before in warm.items():
        assert last[name].memory - before.memory < FLAT_BYTES, name
        assert last[name].files - before.files < FLAT_FILES, name
    headers = {"authorization": f"Bearer {keys[0]}"}
    metrics = httpx.get(f"{served.http}/metrics", headers=headers, trust_env=False).text
    assert 'code="5' not in metrics, [line for line in metrics.splitlines() if 'code="5' in line]
    assert 'code="INTERNAL"' not in metrics
    assert 'code="UNAVAILABLE"' not in metrics
    assert solo.keys() == alone(served, keys[1]).keys()


@pytest.mark.timeout(240)
def test_ten_seconds_of_everything(box: tuple[Served, list[str]]) -> None:
    load(box, 10)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_minute_of_everything(box: tuple[Served, list[str]]) -> None:
    load(box, 60)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_minutes_of_everything(box: tuple[Served, list[str]]) -> None:
    load(box, 600)
