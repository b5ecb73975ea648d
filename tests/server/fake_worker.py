"""A model that is none, for worker processes: operations whose behaviour a test writes into the prompt.

The prompt is JSON: `bytes` a token, `interval_s` between tokens, `fail` (a code, or "bug") after the first token, and
`hang` to stop answering health probes; a sweep takes `interval_s` a plan. The model's name may ask for trouble while
loading: `fake/slow`, `fake/broken`, `fake/bug`, `fake/none` (which lists no model).
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator

from fake_saes import FakeSaes
from fake_variants import FakeVariants

from probewire.protos.activity import WorkerStatus
from probewire.protos.errors import Code, InvalidArgument, NotFound, error_from_code
from probewire.protos.gradients import GradientsRequest
from probewire.protos.loading import HealthReport, LoadProgress, LoadRequest
from probewire.protos.metrics import Measured
from probewire.protos.model import (
    Event,
    Finished,
    GenerateRequest,
    InputStarted,
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
from probewire.protos.saes import SaeInfo
from probewire.protos.sessions import Session
from probewire.protos.sweeps import SweepRequest
from probewire.protos.tensors import Tensor
from probewire.server.config import Report, WorkerConfig
from tests.kept_variants import KeptVariants


def pattern(start: int, n: int) -> bytes:
    """Bytes that show where they belong: i mod 251 for i from `start`."""
    return (bytes(range(251)) * (n // 251 + 2))[start % 251 :][:n]


class FakeOperations(FakeVariants, FakeSaes):
    """`Operations` of one pretended model."""

    def __init__(self, model_id: str = "fake") -> None:
        self.model_id = model_id
        self.active = 0
        self.cancelled = 0
        self.steps = 0
        self.hanging = False
        self.loaded_saes = dict[str, SaeInfo]()
        self.kept = KeptVariants()
        self.stored = StoredCapture("c1", "resid_post.0", "input", (0, 1), "float32", (2, 3), model_id)

    async def generate(self, request: GenerateRequest) -> AsyncIterator[list[Event]]:
        script = json.loads(request.inputs[0].text or "{}")
        self.active += 1
        try:
            yield [self._started()]
            for index in range(request.sampling.max_new_tokens):
                if index == 1:
                    self._misbehave(script)
                await asyncio.sleep(script.get("interval_s", 0))
                yield self._step(index, script.get("bytes", 0))
            yield [Finished("input", "length", Usage(3, request.sampling.max_new_tokens))]
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.active -= 1

    def _misbehave(self, script: dict[str, str]) -> None:
        self.hanging = "hang" in script
        if script.get("fail") == "bug":
            raise RuntimeError("secret")
        if "fail" in script:
            raise error_from_code(Code[script["fail"]], "as you asked", retry_after_s=7)

    def _step(self, index: int, n_bytes: int) -> list[Event]:
        self.steps += 1
        events: list[Event] = [Token("input", index, index, f" {index}")]
        if n_bytes:
            tensor = Tensor("uint8", (1, n_bytes), pattern(index, n_bytes))
            events.append(TensorFrame("input", 0, "h", ("resid_post.0",), (index,), index, tensor))
        return events

    def _started(self) -> Started:
        prompt = InputStarted("input", (1, 2, 3), ("a", "b", "c"))
        return Started("r1", self.model_id, "hash", "fake", "cpu", "float32", "none", {"fake": "1"}, (), (prompt,))

    async def run(self, request: RunRequest) -> AsyncIterator[list[Event]]:
        yield [self._started(), *self._step(0, 4), Finished("input", "run", Usage(3))]

    async def gradients(self, request: GradientsRequest) -> AsyncIterator[list[Event]]:
        frame = TensorFrame("input", 0, "h", ("embed",), (0,), 0, Tensor("uint8", (1, 4), pattern(0, 4)), "gradient")
        measured = Measured("input", Tensor("float64", (1, 1), bytes(8)))
        yield [self._started(), measured, frame, Finished("input", "run", Usage(3))]

    async def sweep(self, request: SweepRequest) -> AsyncIterator[list[Event]]:
        script = json.loads(request.inputs[0].text or "{}")
        self.active += 1
        try:
            yield [self._started()]
            for plan in range(len(request.plans)):
                await asyncio.sleep(script.get("interval_s", 0))
                self.steps += 1
                yield [Measured("input", Tensor("float64", (1, 1), bytes(8)), (plan,))]
            yield [Finished("input", "run", Usage(3))]
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.active -= 1

    async def models(self) -> list[ModelInfo]:
        return [] if self.model_id == "fake/none" else [await self.describe("")]

    async def describe(self, model: str) -> ModelInfo:
        if model not in ("", self.model_id):
            raise NotFound(f"no model {model!r}; this is {self.model_id!r}")
        return ModelInfo(
            self.model_id, "fake", "fake", "fake", "cpu", "float32", "none", "hash", 2, 8, 2, 2, 4, 16, 100
        )

    async def load(self, request: LoadRequest) -> AsyncIterator[LoadProgress]:
        raise InvalidArgument("a worker holds one model")
        yield

    async def unload(self, model: str) -> None:
        raise InvalidArgument("a worker holds one model")

    async def tokenize(self, request: TokenizeRequest) -> Tokenized:
        """Reports what goes on inside."""
        counts = {"active": self.active, "cancelled": self.cancelled, "steps": self.steps}
        return Tokenized(tuple(counts.values()), tuple(counts), request.input.text or "")

    async def weight_names(self, model: str) -> dict[str, tuple[int, ...]]:
        return {"w": (1024, 600), "empty": (0,)}

    async def weights(self, name: str, model: str) -> Tensor:
        if name not in (shapes := await self.weight_names(model)):
            raise NotFound(f"no weight {name!r}; there are: {', '.join(shapes)}")
        return Tensor("float32", shapes[name], bytes(4 * 1024 * 600 if name == "w" else 0))

    async def captures(self, model: str) -> list[StoredCapture]:
        return [self.stored]

    async def capture(self, capture_id: str, model: str) -> tuple[StoredCapture, Tensor]:
        if capture_id != self.stored.id:
            raise NotFound(f"no capture {capture_id!r}")
        return self.stored, Tensor("float32", (2, 3), bytes(range(24)))

    async def delete_capture(self, capture_id: str, model: str) -> None:
        await self.capture(capture_id, model)

    async def health(self) -> HealthReport:
        if self.hanging:
            await asyncio.sleep(3600)
        return HealthReport(True, "a forward took 0 ms", {self.model_id: "ready"})


class FakeWorker(FakeOperations):
    """With what only the gateway asks."""

    def __init__(self, model_id: str) -> None:
        super().__init__(model_id)
        self.sessions = dict[str, Session]()

    async def put_session(self, session: Session) -> None:
        """Refuses one named `refused`."""
        if session.name == "refused":
            raise InvalidArgument("as you asked")
        self.sessions[session.id] = session

    async def drop_session(self, session_id: str) -> None:
        del self.sessions[session_id]

    async def status(self) -> WorkerStatus:
        return WorkerStatus(running=self.active)


async def make(config: WorkerConfig, report: Report) -> FakeWorker:
    """The factory that tests give to worker_main."""
    sys.stdout.write("a print while loading does not break the reports\n")
    for done in range(3):
        report("read weights", done, 2)
        await asyncio.sleep(0.02)
    if config.model == "fake/broken":
        raise InvalidArgument("config.json is no model's")
    if config.model == "fake/bug":
        raise RuntimeError("out of memory")
    if config.model == "fake/slow":
        await asyncio.sleep(3600)
    return FakeWorker(config.id)
