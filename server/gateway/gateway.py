"""The operations over all workers. Tensor streams pass through as bytes; only the APIs in JSON have them decoded."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from ...protos import probewire_pb2 as pb
from ...protos.activity import ActivityReport
from ...protos.errors import Unavailable
from ...protos.loading import HealthReport, LoadProgress, LoadRequest
from ...protos.model import Event, ModelInfo, StoredCapture, Tokenized, TokenizeRequest
from ...protos.operations import BY_CALL, COMPUTED, Operation
from ...protos.saes import LoadSaeRequest, SaeInfo, SaePart, SaeReceived
from ...protos.service import InferenceRequest
from ...protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from ...protos.tensors import Tensor
from ...protos.variants.stored import LoadVariantRequest, VariantInfo, VariantPart, VariantPartRequest
from ...protos.wire.codec import to_proto
from ...protos.wire.events import FrameAssembler, decode_events
from ..auth.access import Access
from ..auth.audit import Audit
from ..auth.users import Users
from ..config import GatewayConfig
from ..metrics import Metrics, is_up
from ..model_names import parsed
from ..state.captures import CaptureStore
from ..state.database import State
from ..state.saes import SaeStore
from ..state.sessions import SessionStore
from ..state.variants import VariantStore
from ..streams import closing
from .pass_through import PassThrough, sites_of
from .request_policy import RequestPolicy
from .roster import Roster
from .sessions import Sessions
from .workers import Worker

__all__ = ["Gateway"]

log = logging.getLogger(__name__)

UPKEEP_S = 5.0
SWEEP_S = 0.5
"""How often the keys of all that is under way are looked at: what a revoked one does ends within a second."""
SENDS = 2
"""Parts of SAEs and variants written at once: they shall not hold every thread."""


class Gateway:
    """`Operations` over a worker a model. Make it inside a running event loop, and `close` it."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._began_s = time.monotonic()
        self.metrics = Metrics()
        self.roster = Roster(config, self.metrics.restarted)
        self._state = State(Path(config.state_dir) if config.state_dir else self.roster.folder / "state")
        self.store = CaptureStore(self._state, max_bytes=config.limits.max_store_bytes, ttl_s=config.limits.store_ttl_s)
        self.sae_store = SaeStore(
            self._state,
            max_bytes=config.limits.max_sae_bytes,
            max_saes=config.limits.max_saes,
            max_all_bytes=config.limits.max_store_bytes,
        )
        self.variant_store = VariantStore(self._state, self.sae_store.uploads, config.limits)
        self._sends = asyncio.Semaphore(SENDS)
        self.users = Users(self._state)
        self._audit = Audit(Path(config.audit) if config.audit else None, prompts=config.audit_prompts)
        self.policy = RequestPolicy(Access(self.users, self.metrics.refused), self.metrics, self._audit)
        self.live = Sessions(SessionStore(self._state), self.find)
        self.streams = PassThrough(self, self.policy, self.live, self.ready)
        self._chores = [asyncio.create_task(self._keep_up()), asyncio.create_task(self._sweep())]

    @property
    def workers(self) -> dict[str, Worker]:
        """Model id → worker."""
        return self.roster.workers

    def find(self, model: str) -> Worker:
        """The worker of a model; empty: the only one. Raises, naming the models there are and the fix."""
        return self.roster.find(model)

    @asynccontextmanager
    async def ready(self, model: str) -> AsyncGenerator[Worker]:
        """The worker of a model, woken if it sleeps, and kept from sleeping."""
        worker = self.find(model)
        async with worker.awake():
            yield worker

    async def _keep_up(self) -> None:
        """Put idle models to sleep, and forget expired captures."""
        while True:
            await asyncio.sleep(min(UPKEEP_S, self._config.idle_unload_s / 4 or UPKEEP_S))
            try:
                for worker in list(self.workers.values()):
                    if self._config.idle_unload_s and worker.idle_s > self._config.idle_unload_s:
                        worker.sleep()
                self.store.purge()
                self.sae_store.uploads.purge()
            except Exception:  # a full disk, say; the next round tries again
                log.exception("upkeep failed")

    async def _sweep(self) -> None:
        """End what runs under keys that have ended."""
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                self.policy.sweep()
            except Exception:  # the database is locked, say; as above
                log.exception("keys could not be looked at")

    # ---- models ----

    async def models(self) -> list[ModelInfo]:
        self.policy.check("Models.List")
        gone = ("failed", "stopping")
        return [w.info for w in self.workers.values() if w.info is not None and w.state not in gone]

    async def describe(self, model: str) -> ModelInfo:
        self.policy.check("Models.Describe")
        worker = self.find(model)
        worker.check_not_failed()
        if worker.info is None:
            raise Unavailable(f"model {worker.config.id!r} is {worker.status}; retry", retry_after_s=2.0)
        return worker.info

    async def load(self, request: LoadRequest) -> AsyncIterator[LoadProgress]:
        """Loading what is loaded, or being loaded, under the same id joins it. A caller who leaves does not end the load."""
        with self.policy.record("Models.Load") as record:
            record.model = self.roster.id_for(parsed(request))
            async with closing(self.load_for_operator(request)) as progress:
                async for step in progress:
                    yield step

    async def load_for_operator(
        self, request: LoadRequest, *, keep_failed: bool = False
    ) -> AsyncIterator[LoadProgress]:
        """As `load`, for whoever starts the server. `keep_failed`: the name of one that cannot load stays, with its reason."""
        worker = self.roster.join(request, self._state.folder)
        async with closing(worker.progress()) as progress:
            try:
                async for step in progress:
                    yield step
            finally:
                if worker.never_loaded and not keep_failed:
                    self.roster.forget(worker)

    async def unload(self, model: str) -> None:
        with self.policy.record("Models.Unload") as record:
            worker = self.find(model)
            record.model = worker.config.id
            await worker.stop()
            self.roster.forget(worker)

    async def health(self) -> HealthReport:
        """Ready when a model is; each worker is probed with a real forward on its own clock."""
        models = {name: worker.status for name, worker in self.workers.items()}
        n_ready = sum(status == "ready" or worker.state == "asleep" for status, worker in self._statuses())
        if self.roster.closing:
            return HealthReport(False, "shutting down", models)
        if not models:
            return HealthReport(False, "no model is loaded", models)
        restarts = {name: worker.restarts for name, worker in self.workers.items() if worker.restarts}
        note = "".join(f"; {name} was restarted {n} times" for name, n in restarts.items())
        return HealthReport(n_ready > 0, f"{n_ready} of {len(models)} models ready{note}", models)

    def _statuses(self) -> list[tuple[str, Worker]]:
        return [(worker.status, worker) for worker in self.workers.values()]

    def drain(self) -> None:
        """Take no new requests; those in flight go on."""
        self.roster.closing = True

    async def close(self) -> None:
        """End every worker."""
        self.roster.closing = True
        for chore in self._chores:
            chore.cancel()
        await asyncio.gather(*(worker.stop() for worker in self.workers.values()))
        self.workers.clear()
        self.store.close()
        self._state.close()
        self._audit.close()
        self.roster.remove_folder()

    def kill(self) -> None:
        """End every worker at once, without waiting."""
        for worker in self.workers.values():
            worker.kill()
        self.roster.remove_folder()

    # ---- inference ----

    def generate(self, request: InferenceRequest) -> AsyncIterator[list[Event]]:
        """See Operations."""
        return _decoded(self.streams.stream(COMPUTED[type(request)], to_proto(request).SerializeToString()))

    run = gradients = sweep = generate

    async def tokenize(self, request: TokenizeRequest) -> Tokenized:
        caller = self.policy.check("Models.Tokenize")
        async with self.ready(request.model) as worker:
            return await worker.ask(caller, BY_CALL["tokenize"], request)

    async def other(self, operation: Operation, *args: Any) -> Any:
        """What the gateway has no part in goes to the worker of the model that the request names."""
        with self.policy.record(operation.name) as record:
            async with self.ready(getattr(operation.asked(*args), "model", "")) as worker:
                record.model = worker.config.id
                return await worker.ask(record.caller, operation, *args)

    # ---- weights and captures ----

    async def weight_names(self, model: str) -> dict[str, tuple[int, ...]]:
        return {chunk.name: tuple(chunk.shape) for chunk in await self._chunks(model)}

    async def weights(self, name: str, model: str) -> Tensor:
        chunks = await self._chunks(model, name)
        return Tensor(chunks[0].dtype, tuple(chunks[0].shape), b"".join(chunk.data for chunk in chunks))

    async def _chunks(self, model: str, name: str = "") -> list[pb.WeightChunk]:
        request = pb.WeightsRequest(model=model, name=name).SerializeToString()
        async with closing(self.streams.stream(BY_CALL["weights"], request)) as chunks:
            return [pb.WeightChunk.FromString(chunk) async for chunk in chunks]

    async def captures(self, model: str) -> list[StoredCapture]:
        return self.store.list(self.policy.check("Captures.List").user.name, model)

    async def capture(self, capture_id: str, model: str) -> tuple[StoredCapture, Tensor]:
        with self.policy.record("Captures.Get") as record:
            stored, tensor = await asyncio.to_thread(self.store.get_item, record.caller.user.name, capture_id)
            record.model, record.captured_bytes = stored.model, len(tensor.data)
            return stored, tensor

    async def delete_capture(self, capture_id: str, model: str) -> None:
        with self.policy.record("Captures.Delete") as record:
            self.store.delete(record.caller.user.name, capture_id)

    # ---- SAEs ----

    async def load_sae(self, request: LoadSaeRequest) -> SaeInfo:
        with self.policy.record("Saes.Load", sites=(request.site,) if request.site else ()) as record:
            async with self.ready(request.model) as worker:
                record.model = worker.config.id
                return await worker.ask(record.caller, BY_CALL["load_sae"], request)

    async def send_sae(self, part: SaePart) -> SaeReceived:
        with self.policy.record("Saes.Send") as record:
            async with self._sends:
                return await asyncio.to_thread(self.sae_store.receive, record.caller.user, part)

    async def saes(self, model: str) -> list[SaeInfo]:
        return self.sae_store.list(self.policy.check("Saes.List").user, model)

    async def unload_sae(self, name: str, model: str) -> None:
        """The worker lets go of its weights when a hook next names an SAE; what runs with it goes on."""
        with self.policy.record("Saes.Unload") as record:
            record.model = (await asyncio.to_thread(self.sae_store.delete, record.caller.user, name, model)).model

    # ---- variants ----

    async def load_variant(self, request: LoadVariantRequest) -> VariantInfo:
        with self.policy.record("Variants.Load") as record:
            async with self.ready(request.model) as worker:
                record.model = worker.config.id
                info: VariantInfo = await worker.ask(record.caller, BY_CALL["load_variant"], request)
                record.variants = (f"{info.name}@{info.version}", info.hash)
                return info

    async def send_variant(self, part: SaePart) -> SaeReceived:
        with self.policy.record("Variants.Send") as record:
            async with self._sends:
                return await asyncio.to_thread(self.variant_store.receive, record.caller.user, part)

    async def variants(self, model: str) -> list[VariantInfo]:
        return self.variant_store.list(self.policy.check("Variants.List").user, model)

    async def variant(self, name: str, model: str) -> VariantInfo:
        return self.variant_store.get(self.policy.check("Variants.Get").user, name, model)

    async def variant_part(self, request: VariantPartRequest) -> VariantPart:
        with self.policy.record("Variants.Read") as record:
            return await asyncio.to_thread(self.variant_store.part, record.caller.user, request)

    async def unload_variant(self, name: str, model: str) -> None:
        """What runs with it goes on."""
        with self.policy.record("Variants.Unload") as record:
            info = await asyncio.to_thread(self.variant_store.delete, record.caller.user, name, model)
            record.model, record.variants = info.model, (f"{info.name}@{info.version}", info.hash)

    # ---- sessions ----

    async def create_session(self, request: CreateSessionRequest) -> Session:
        with self.policy.record("Sessions.Create", sites=sites_of(request.plan)) as record:
            session = await self.live.create(record.caller, request)
            record.model, record.session = session.model, session.id
            return session

    async def update_session(self, request: UpdateSessionRequest) -> Session:
        with self.policy.record("Sessions.Update", sites=sites_of(request.plan), session=request.id) as record:
            session = await self.live.update(record.caller, request)
            record.model = session.model
            return session

    async def session(self, session_id: str) -> Session:
        return self.live.get(self.policy.check("Sessions.Get"), session_id)

    async def sessions(self) -> list[Session]:
        return self.live.list(self.policy.check("Sessions.List"))

    async def delete_session(self, session_id: str) -> None:
        with self.policy.record("Sessions.Delete", session=session_id) as record:
            await self.live.delete(record.caller, session_id)

    # ---- sight ----

    async def activity(self) -> ActivityReport:
        self.policy.check("Activity.Get")
        models = await asyncio.gather(*(worker.activity() for worker in self.workers.values()))
        requests = tuple(record.activity() for record in self.policy.records)
        return ActivityReport(tuple(models), requests, time.monotonic() - self._began_s)

    async def measure(self) -> bytes:
        """The metrics as Prometheus reads them."""
        report = await self.activity()
        ready = sum(is_up(model.state) for model in report.models)
        self.metrics.refresh({model.id: model for model in report.models}, ready, self.store.used_bytes())
        return self.metrics.text()


async def _decoded(messages: AsyncIterator[bytes]) -> AsyncIterator[list[Event]]:
    assembler = FrameAssembler()
    async with closing(messages):
        async for message in messages:
            events = list(decode_events(pb.Events.FromString(message), assembler))
            if events:
                yield events
