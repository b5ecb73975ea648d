"""Pretended operations whose behaviour each request scripts: the input's text is JSON.

`fail`: the name of a Code, or "bug" · `bytes`: tensor bytes with each token · `interval_s`: pause before each token ·
`hang`: from now on health gives no answer. `make` is the factory for worker processes; the model's name scripts it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from probewire.protos.errors import Code, InvalidArgument, NotFound, Unsupported, error_from_code
from probewire.protos.model import (
    Event,
    Finished,
    GenerateRequest,
    HealthReport,
    InputStarted,
    LoadProgress,
    LoadRequest,
    ModelInfo,
    RunRequest,
    Started,
    StoredCapture,
    TensorFrame,
    Token,
    Tokenized,
    TokenizeRequest,
    Usage,
)
from probewire.protos.tensors import Tensor
from probewire.server.config import Report, WorkerConfig

WEIGHTS = {"w": (1024, 600), "empty": (0,)}


def pattern(index: int, n_bytes: int) -> bytes:
    """The bytes that come with token `index`."""
    return bytes((np.arange(n_bytes, dtype=np.int64) * 7 + index).astype(np.uint8))


def info_of(model: str) -> ModelInfo:
    return ModelInfo(
        id=model,
        family="unknown",
        architecture="fake",
        backend="fake",
        device="cpu",
        dtype="float32",
        attention="none",
        model_hash="0",
        n_layers=2,
        d_model=8,
        n_heads=2,
        n_kv_heads=2,
        d_head=4,
        d_mlp=16,
        vocab_size=64,
        context_length=1024,
        n_slots=1,
    )


async def make(config: WorkerConfig, report: Report) -> FakeOperations:
    """What a worker process serves."""
    report("read weights", 2, 2)
    if config.model == "fake/broken":
        raise InvalidArgument("config.json is no model's")
    if config.model == "fake/bug":
        raise RuntimeError("out of memory")
    if config.model == "fake/slow":
        await asyncio.Event().wait()
    return FakeOperations(config.id)


class FakeOperations:
    """One pretended model. `tokenize` tells how many requests are active and how many were cancelled."""

    def __init__(self, model: str = "fake") -> None:
        self.info = info_of(model)
        self.active = 0
        self.cancelled = 0
        self.hung = False
        capture = StoredCapture("c1", "resid_post.0", "input", (0, 1), "float32", (2, 3), model)
        self.stored = {"c1": (capture, Tensor.of(np.arange(6, dtype=np.float32).reshape(2, 3)))}

    async def generate(self, request: GenerateRequest) -> AsyncIterator[list[Event]]:
        script = _script(request.inputs[0].text)
        _fail(script)
        self.hung |= bool(script.get("hang"))
        self.active += 1
        whole = False
        try:
            yield [self._started(request)]
            name, n = request.inputs[0].name, request.sampling.max_new_tokens
            for index in range(n):
                await asyncio.sleep(script.get("interval_s", 0))
                yield [Token(name, index, index % 64, "x"), *_frames(name, index, script.get("bytes", 0))]
            yield [Finished(name, "length", Usage(1, n))]
            whole = True
        finally:
            self.active -= 1
            self.cancelled += not whole

    async def run(self, request: RunRequest) -> AsyncIterator[list[Event]]:
        _fail(_script(request.inputs[0].text))
        yield [self._started(request)]
        yield [Finished(item.name, "run", Usage(1)) for item in request.inputs]

    def _started(self, request: GenerateRequest | RunRequest) -> Started:
        info = self.info
        return Started(
            request_id="r",
            model=info.id,
            model_hash=info.model_hash,
            backend=info.backend,
            device=info.device,
            dtype=info.dtype,
            attention=info.attention,
            versions={},
            hooks=(),
            inputs=tuple(InputStarted(item.name, (1,), ("x",)) for item in request.inputs),
        )

    async def models(self) -> list[ModelInfo]:
        return [self.info]

    async def describe(self, model: str) -> ModelInfo:
        return self.info

    async def load(self, request: LoadRequest) -> AsyncIterator[LoadProgress]:
        raise Unsupported("a worker holds one model")
        yield

    async def unload(self, model: str) -> None:
        raise Unsupported("a worker holds one model")

    async def tokenize(self, request: TokenizeRequest) -> Tokenized:
        return Tokenized((self.active, self.cancelled), ("active", "cancelled"), request.input.text or "")

    async def weight_names(self, model: str) -> dict[str, tuple[int, ...]]:
        return dict(WEIGHTS)

    async def weights(self, name: str, model: str) -> Tensor:
        if name not in WEIGHTS:
            raise NotFound(f"no weight {name!r}")
        return Tensor.of(np.zeros(WEIGHTS[name], np.float32))

    async def captures(self, model: str) -> list[StoredCapture]:
        return [capture for capture, _ in self.stored.values()]

    async def capture(self, capture_id: str, model: str) -> tuple[StoredCapture, Tensor]:
        if capture_id not in self.stored:
            raise NotFound(f"no capture {capture_id!r}")
        return self.stored[capture_id]

    async def delete_capture(self, capture_id: str, model: str) -> None:
        await self.capture(capture_id, model)
        del self.stored[capture_id]

    async def health(self) -> HealthReport:
        if self.hung:
            await asyncio.Event().wait()
        return HealthReport(True, "a forward took 0 ms", {self.info.id: "ready"})


def _script(text: str | None) -> dict[str, Any]:
    try:
        script = json.loads(text or "")
    except ValueError:
        return {}
    return script if isinstance(script, dict) else {}


def _fail(script: dict[str, Any]) -> None:
    name = script.get("fail")
    if name == "bug":
        raise RuntimeError("secret")
    if name is not None:
        raise error_from_code(Code[name], "as you asked", 7)


def _frames(name: str, index: int, n_bytes: int) -> list[Event]:
    if not n_bytes:
        return []
    tensor = Tensor("uint8", (1, 1, n_bytes), pattern(index, n_bytes))
    return [TensorFrame(name, 0, "h", ("resid_post.0",), (index,), index, tensor)]
