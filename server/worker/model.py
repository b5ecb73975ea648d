"""One model in this process: its scheduler, tokenizer and stored captures, as the operations that a worker serves."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...backends import load_backend
from ...backends.hooks.base import Backend
from ...backends.model.tokenizer import Tokenizer, read_codec
from ...backends.saes import UserAssets
from ...backends.saes.user_assets import FoundVariant
from ...protos.activity import WorkerStatus
from ...protos.errors import InvalidArgument, NotFound, ProbewireError
from ...protos.gradients import GradientsRequest
from ...protos.loading import HealthReport
from ...protos.model import Input, ModelInfo, RunRequest, Tokenized, TokenizeRequest
from ...protos.saes import LoadSaeRequest, SaeInfo
from ...protos.service import InferenceRequest
from ...protos.sessions import Session
from ...protos.spec import Plan
from ...protos.sweeps import SweepRequest
from ...protos.variants.stored import LoadVariantRequest, VariantInfo
from ...protos.variants.use import VariantUse
from ..auth.callers import Caller
from ..config import WorkerConfig
from ..state.captures import CaptureStore
from ..state.database import State
from ..state.saes import SaeStore
from ..state.variants import VariantStore
from .input.binding import Binding
from .input.generate import prepare_generate, prepare_run
from .input.gradients import prepare_gradients
from .input.prepared import Prepared
from .input.running import RunningVariants
from .input.sweep import prepare_sweep
from .output.delivery import ActiveRequest
from .sae_loading import load_sae
from .scheduler import Scheduler
from .sessions import LiveSessions, check_session_plan
from .variant_loading import load_variant

__all__ = ["LocalModel"]


MAX_TOKENIZE_CHARS = 4 << 20

PROBE_PATIENCE_S = 15.0
"""How long a probe waits for the model's thread before it asks what that thread is doing."""
LONGEST_FORWARD_S = 600.0
"""A single forward that takes longer counts as hung."""


class LocalModel:
    """A loaded model and the thread that owns it. The parts that both APIs below share."""

    def __init__(
        self,
        config: WorkerConfig,
        folder: Path,
        *,
        model_hash: str = "",
        on_death: Callable[[], None] | None = None,
    ) -> None:
        self.config = config
        codec = read_codec(folder)  # before the weights, which may take minutes to no end

        def build(threads: int) -> Backend:
            return load_backend(
                config.backend,
                folder,
                model_id=config.id,
                model_hash=model_hash,
                dtype=config.dtype,
                device=config.device,
                quantize=config.quantize,
                limits=config.engine,
                threads=threads,
                source=config.model,
            )

        self.scheduler = Scheduler(build, config.limits, on_death, threads=config.threads)
        self.backend = self.scheduler.start()
        self.tokenizer = Tokenizer(folder, self.backend.info.vocab_size, codec)
        self.info: ModelInfo = self.tokenizer.described(self.backend.info)
        self.sessions = LiveSessions()
        self.state, self._own_folder = self._open_state()
        self.store = CaptureStore(self.state, max_bytes=config.limits.max_store_bytes, ttl_s=config.limits.store_ttl_s)
        self.saes = SaeStore(
            self.state,
            max_bytes=config.limits.max_sae_bytes,
            max_saes=config.limits.max_saes,
            max_all_bytes=config.limits.max_store_bytes,
        )
        self.variants = VariantStore(self.state, self.saes.uploads, config.limits)

    def _open_state(self) -> tuple[State, tempfile.TemporaryDirectory[str] | None]:
        """The gateway's state folder; in process, one of our own that goes when we do."""
        if self.config.state_dir:
            return State(Path(self.config.state_dir)), None
        folder = tempfile.TemporaryDirectory(prefix="probewire-state-")
        return State(Path(folder.name)), folder

    def submit(self, request: InferenceRequest, sink: Any, caller: Caller) -> ActiveRequest:
        """Check a request and queue it. Raises before anything runs."""
        self.check_model(request.model)
        prepared = self._prepare(request, caller)
        owner = caller.user
        reservation = self.store.reserve(owner.name, prepared.store_bytes, owner.limits.store_bytes)
        job = ActiveRequest(
            prepared,
            caller,
            sink,
            self.tokenizer,
            self.store,
            sessions=self.sessions,
            reservation=reservation,
            thread=self.scheduler,
            prepare_again=lambda: self._prepare(request, caller),
        )
        try:
            self.scheduler.submit(job)
        except BaseException:
            self.store.release(reservation)
            raise
        return job

    def _prepare(self, request: InferenceRequest, caller: Caller) -> Prepared:
        binding = self._binding(caller.request_id, self._assets(caller))
        if isinstance(request, RunRequest):
            return prepare_run(request, binding)
        if isinstance(request, GradientsRequest):
            return prepare_gradients(request, binding)
        if isinstance(request, SweepRequest):
            return prepare_sweep(request, binding)
        session = self.sessions.get(caller.user.name, request.session) if request.session else None
        return prepare_generate(request, binding, session)

    def _binding(self, request_id: str, assets: UserAssets) -> Binding:
        return Binding(request_id, self.backend, self.tokenizer, self.config.limits, assets)

    def _assets(self, caller: Caller) -> UserAssets:
        def variant(name: str) -> FoundVariant:
            [found] = self.variants.resolve([VariantUse(name)], caller.user, self.info)
            return FoundVariant(found.name, found.version, found.owner, found.variant)

        return UserAssets(self.store.of(caller.user.name), self.saes.of(caller.user, self.info), variant)

    def put_session(self, session: Session, caller: Caller) -> None:
        """Take a session or its next revision, for generations under way from their next step on."""
        assets = self._assets(caller)
        check_session_plan(session.plan, self.backend, assets)  # here: an SAE may have to be read
        RunningVariants(self.backend, assets, session.variants).check()

        def put() -> None:
            self.sessions.put(caller.user.name, session, self.scheduler.jobs, self.backend)

        self.scheduler.call(put)

    def load_sae(self, request: LoadSaeRequest, caller: Caller) -> SaeInfo:
        """Load an SAE onto a site of this model."""
        self.check_model(request.model)
        return load_sae(request, caller.user, self.info, self.saes, self.config.sae_folders)

    def load_variant(self, request: LoadVariantRequest, caller: Caller) -> VariantInfo:
        """Load a variant onto this model."""
        self.check_model(request.model)
        fits = self.backend.weight_table.bind
        return load_variant(request, caller.user, self.info, self.variants, self.config.variant_folders, fits)

    def status(self) -> WorkerStatus:
        """The engine and the queue as they are now, read between steps."""
        return replace(self.scheduler.status(), store_bytes=self.store.used_bytes())

    def check_model(self, model: str) -> None:
        """Raise NotFound unless the name means this model."""
        if model not in ("", self.info.id):
            raise NotFound(f"no model {model!r} here; loaded: {self.info.id}")

    def tokenize(self, request: TokenizeRequest) -> Tokenized:
        """Token ids and texts of an input. Raises InvalidArgument for a text that takes seconds to tokenize."""
        self.check_model(request.model)
        messages = request.input.messages or ()
        length = len(request.input.text or "") + sum(len(message.content) for message in messages)
        if length > MAX_TOKENIZE_CHARS and not request.at_most:
            raise InvalidArgument(f"a text to tokenize has at most {MAX_TOKENIZE_CHARS:,} characters, got {length:,}")
        ids = self.tokenizer.encode(request.input, at_most=request.at_most, special=request.add_special_tokens)
        tokenizer = self.tokenizer
        raw = tuple(map(tokenizer.raw, ids))
        return Tokenized(tuple(ids), tuple(tokenizer.tokens(ids)), tokenizer.decode(ids), raw)

    def probe(self) -> HealthReport:
        """Run a real forward between two steps; while a step or run is under way, that it moves is the answer."""
        asked = RunRequest((Input(token_ids=(0,)),), plan=Plan())
        prepared = prepare_run(asked, self._binding("probe", UserAssets()))
        sequences = [item.sequence for item in prepared.inputs if item.sequence is not None]
        try:
            finished = self.scheduler.call(lambda: self.backend.run(sequences), give_up_s=PROBE_PATIENCE_S)
        except ProbewireError as error:
            return HealthReport(False, error.message, {self.info.id: f"failed: {error.message}"})
        if finished is None:
            return self._busy()
        return HealthReport(True, "a forward ran", {self.info.id: "ready"})

    def _busy(self) -> HealthReport:
        """The model's thread did not come to the probe: well, as long as its forward is not past all bounds."""
        busy_s = self.scheduler.busy_s
        ready = busy_s < LONGEST_FORWARD_S
        state = f"busy: one forward has taken {busy_s:.0f} s so far"
        return HealthReport(ready, state, {self.info.id: "ready" if ready else f"failed: {state}"})

    def close(self) -> None:
        """End everything."""
        self.scheduler.close()
        self.store.close()
        self.state.close()
        if self._own_folder is not None:
            self._own_folder.cleanup()
