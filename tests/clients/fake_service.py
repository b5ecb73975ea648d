"""A model small enough to know by heart, behind the `Service` protocol.

A token is a character and its id the character's code. The value at a site is `token id + 1000·layer` in every
coordinate, plus alpha·v for each `add` there. The next token is the previous one plus 1, plus the first coordinate of
every `add` at resid_post (alpha·v[0]). Rows come in one frame a hook and step, before the step's token. A generation
takes over its session's next revision between steps; `before_step` is called there, for tests that change it.

A gradient is −value, and its metric the sum of the token ids, plus k at point k of a path. A sweep measures that sum
plus 10·plan + target, and tells the last plans first, some at a time; `before_step` is called before each time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from fake_sessions import N_LAYERS, FakeSessions, Followed, hook_id, resolved

from probewire.protos.activity import ActivityReport
from probewire.protos.edits import Add
from probewire.protos.errors import Code, InvalidArgument, NotFound, error_from_code
from probewire.protos.gradients import GradientsRequest, targets_of
from probewire.protos.loading import HealthReport, LoadProgress, LoadRequest
from probewire.protos.metrics import Measured
from probewire.protos.model import (
    Event,
    Finished,
    GenerateRequest,
    Input,
    InputStarted,
    ModelInfo,
    Revised,
    RunRequest,
    SiteInfo,
    Started,
    StoredCapture,
    TensorFrame,
    Timings,
    Token,
    Tokenized,
    TokenizeRequest,
    TokenizerInfo,
    TokenLogprob,
    Usage,
)
from probewire.protos.saes import LoadSaeRequest, SaeInfo, SaePart, SaeReceived
from probewire.protos.service import InferenceRequest
from probewire.protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from probewire.protos.sites import AXES, LAYER_SITES, Site, SitePattern
from probewire.protos.spec import Hook, Last, Mean, Norm, Plan, TopK
from probewire.protos.sweeps import SweepRequest
from probewire.protos.tensors import Array, Tensor, numpy_dtype
from probewire.protos.variants.stored import LoadVariantRequest, VariantInfo, VariantPart, VariantPartRequest
from tests.kept_variants import KeptVariants

D_MODEL, N_HEADS, VOCAB = 4, 2, 256
WIDTHS = {"d_model": D_MODEL, "d_mlp": 8, "head": N_HEADS, "kv_head": N_HEADS, "d_head": 2, "vocab": VOCAB, "expert": 2}
DTYPE = "bfloat16"


def info() -> ModelInfo:
    sites = tuple(
        SiteInfo(name, axes, tuple(WIDTHS.get(axis, 0) for axis in axes[1:]), _layers(name), edits=("add", "replace"))
        for name, axes in AXES.items()
        if "expert" not in axes
    )
    return ModelInfo(
        "fake", "llama", "fake", "numpy", "cpu", DTYPE, "none", "abc123", N_LAYERS, D_MODEL, N_HEADS, N_HEADS, 2, 8,
        VOCAB, context_length=1024, chat_template=True, n_slots=4, sites=sites, versions={"numpy": np.__version__},
    )  # fmt: skip


def _layers(name: str) -> tuple[int, ...] | None:
    return tuple(range(N_LAYERS)) if name in LAYER_SITES else None


@dataclass
class FakeService:
    """Deterministic; `cancelled` is set when a stream was closed before its end."""

    step_s: float = 0.0
    cancelled: threading.Event = field(default_factory=threading.Event)
    closed: bool = False
    stored: dict[str, tuple[StoredCapture, Array]] = field(default_factory=dict)
    loaded_saes: dict[str, SaeInfo] = field(default_factory=dict)
    sae_requests: list[LoadSaeRequest] = field(default_factory=list)
    sent: bytearray = field(default_factory=bytearray)
    """What there is of an SAE's weights."""
    sae_parts: list[SaePart] = field(default_factory=list)
    kept: KeptVariants = field(default_factory=KeptVariants)
    requests: list[InferenceRequest] = field(default_factory=list)
    live: FakeSessions = field(default_factory=FakeSessions)
    before_step: Callable[[int], None] = lambda index: None
    report: ActivityReport = ActivityReport()

    def generate(self, request: GenerateRequest) -> Iterator[Event]:
        self.requests.append(request)
        finished, cancelled = False, self.cancelled  # that of its own test, should it outlive that
        try:
            followed = Followed(request, self.live)
            yield self._started(request.inputs, followed.plan, followed.revision)
            last = [item for item in request.inputs if not item.source_only][-1]
            for item in request.inputs:
                for event in self._generate(item, request, followed) if not item.source_only else ():
                    finished = item is last and isinstance(event, Finished)  # whoever leaves after that has it all
                    yield event
        finally:
            if not finished:
                cancelled.set()

    def _generate(self, item: Input, request: GenerateRequest, followed: Followed) -> Iterator[Event]:
        tokens, sampling = list(prompt_ids(item)), request.sampling
        prompt, text = len(tokens), ""
        held: dict[int, list[tuple[tuple[int, ...], Array]]] = {}
        index, ended = 0, False
        for index in range(sampling.max_new_tokens):
            time.sleep(self.step_s)
            self.before_step(index)
            if followed.step():
                yield Revised(item.name, followed.revision, resolved(followed.plan))
            start = 0 if index == 0 else len(tokens) - 1
            yield from self._frames(item, followed, tokens, range(start, len(tokens)), prompt, index, held)
            tokens.append((tokens[-1] + 1 + _shift(followed.plan)) % VOCAB)
            piece = chr(tokens[-1])
            ended = any((text + piece).endswith(stop) for stop in sampling.stop)
            text += "" if ended else piece
            logprob = None if sampling.logprobs is None else -0.5 * (index + 1)
            top = tuple(TokenLogprob(i, chr(i), -float(i)) for i in range(65, 65 + (sampling.logprobs or 0)))
            yield Token(item.name, index, tokens[-1], "" if ended else piece, logprob, top, followed.revision)
            if ended:
                break
        yield from self._held(item, followed.plan, held, index)
        reason = "stop" if ended else "length"
        usage, timings = Usage(prompt, len(tokens) - prompt), Timings(0.0, 0.1, 0.5)
        yield Finished(item.name, reason, usage, timings, self._store(item, request.plan, tokens[:-1], prompt))

    def run(self, request: RunRequest) -> Iterator[Event]:
        self.requests.append(request)
        followed = Followed(GenerateRequest(request.inputs, plan=request.plan), self.live)
        yield self._started(request.inputs, request.plan)
        for item in (item for item in request.inputs if not item.source_only):
            tokens = prompt_ids(item)
            held: dict[int, list[tuple[tuple[int, ...], Array]]] = {}
            yield from self._frames(item, followed, list(tokens), range(len(tokens)), len(tokens), 0, held)
            yield from self._held(item, request.plan, held, 0)
            stored = self._store(item, request.plan, list(tokens), len(tokens))
            yield Finished(item.name, "run", Usage(len(tokens)), Timings(0.0, 0.25, 0.25), stored)

    def gradients(self, request: GradientsRequest) -> Iterator[Event]:
        self.requests.append(request)
        followed = Followed(GenerateRequest(request.inputs, plan=request.plan), self.live)
        yield self._started(request.inputs, request.plan)
        for item in request.inputs:
            if item.source_only:
                continue
            tokens, points = list(prompt_ids(item)), range(1 if request.path is None else request.path.steps)
            yield Measured(item.name, Tensor.of(np.array([[sum(tokens) + k] for k in points], dtype=np.float64)))
            for frame in self._frames(item, followed, tokens, range(len(tokens)), len(tokens), 0, {}):
                capture = request.plan.hooks[frame.hook].capture
                if capture is not None and capture.gradient:
                    part = "_".join(filter(None, ("gradient", frame.part)))
                    yield replace(frame, part=part, tensor=Tensor.of(-frame.tensor.numpy()))
                else:
                    yield frame
            yield Finished(item.name, "run", Usage(len(tokens)), Timings(0.0, 0.25, 0.25))

    def sweep(self, request: SweepRequest) -> Iterator[Event]:
        self.requests.append(request)
        finished = False
        try:
            yield self._started(request.inputs, request.base)
            for item in (item for item in request.inputs if not item.source_only):
                total, targets = sum(prompt_ids(item)), targets_of(item, request.targets)
                left = list(range(len(request.plans)))
                while left:
                    self.before_step(len(left))
                    plans, left = left[-3:], left[:-3]
                    values = [[total + 10 * plan + target for target in range(len(targets))] for plan in plans]
                    yield Measured(item.name, Tensor.of(np.array(values, dtype=np.float64)), tuple(plans))
                finished = True
                yield Finished(item.name, "run", Usage(len(prompt_ids(item))), Timings(0.0, 0.25, 0.25))
        finally:
            if not finished:
                self.cancelled.set()

    def _started(self, inputs: tuple[Input, ...], plan: Plan, revision: int = 0) -> Started:
        for item in inputs:
            _fail_if_told_to(item)
        began = tuple(InputStarted(i.name, prompt_ids(i), tuple(chr(t) for t in prompt_ids(i)), 7) for i in inputs)
        versions = {"numpy": np.__version__}
        return Started(
            "req-1",
            "fake",
            "abc123",
            "numpy",
            "cpu",
            DTYPE,
            "none",
            versions,
            resolved(plan),
            began,
            revision,
            N_LAYERS,
        )

    def _frames(self, item, followed, tokens, rows, prompt, step, held) -> Iterator[TensorFrame]:
        plan = followed.plan
        for index, hook in enumerate(plan.hooks):
            if hook.capture is None or hook.capture.store or (hook.inputs and item.name not in hook.inputs):
                continue
            chosen = [p for p in rows if _applies(hook, p, prompt)]
            if not chosen:
                continue
            sites = tuple(str(site) for site in SitePattern.parse(hook.site).expand(N_LAYERS))
            values = np.stack([_value(Site.parse(site), plan, tokens, chosen) for site in sites])
            if isinstance(hook.capture.reduce, (Last, Mean)):
                held.setdefault(index, []).append((tuple(chosen), values))
                continue
            for part, array in _reduced(hook, values):
                frame = (item.name, index, hook_id(plan, index), sites, tuple(chosen), step)
                yield TensorFrame(*frame, Tensor.of(array), part, followed.revision, followed.since[index])

    def _held(self, item, plan, held, step) -> Iterator[TensorFrame]:
        for index, parts in held.items():
            hook = plan.hooks[index]
            sites = tuple(str(site) for site in SitePattern.parse(hook.site).expand(N_LAYERS))
            values = np.concatenate([v for _, v in parts], axis=1)
            last = isinstance(hook.capture.reduce, Last)
            array = values[:, -1:] if last else values.astype(np.float32).mean(axis=1, keepdims=True)
            positions = parts[-1][0][-1:] if last else ()
            for i, site in enumerate(sites):
                frame = (item.name, index, hook_id(plan, index), (site,), positions, step)
                yield TensorFrame(*frame, Tensor.of(array[i : i + 1]))

    def _store(self, item, plan, tokens, prompt) -> tuple[StoredCapture, ...]:
        kept = []
        for hook in plan.hooks:
            if hook.capture is None or not hook.capture.store:
                continue
            rows = [p for p in range(len(tokens)) if _applies(hook, p, prompt)]
            array = _value(Site.parse(hook.site), plan, tokens, rows)
            name = f"cap-{len(self.stored)}"
            entry = StoredCapture(name, hook.site, item.name, tuple(rows), DTYPE, array.shape, "fake")
            self.stored[name] = (entry, array)
            kept.append(entry)
        return tuple(kept)

    def models(self) -> list[ModelInfo]:
        return [info()]

    def describe(self, model: str = "") -> ModelInfo:
        if model not in ("", "fake"):
            raise NotFound(f"no model {model!r}; loaded: fake")
        return info()

    def load(self, request: LoadRequest) -> Iterator[LoadProgress]:
        yield LoadProgress("download", 50, 100)
        yield LoadProgress("download", 100, 100)
        yield LoadProgress("ready", info=info())

    def unload(self, model: str) -> None:
        self.describe(model)

    def tokenize(self, request: TokenizeRequest) -> Tokenized:
        ids = prompt_ids(request.input)
        return Tokenized(ids, tuple(chr(i) for i in ids), "".join(chr(i) for i in ids))

    def tokenizer_info(self, model: str = "") -> TokenizerInfo:
        return TokenizerInfo(eos_token="e")

    def weights(self, name: str, model: str = "") -> Array:
        shape = self.weight_names(model).get(name)
        if shape is None:
            raise NotFound(f"no weight {name!r}; weight_names() lists them")
        return np.arange(np.prod(shape), dtype=np.float32).reshape(shape).astype(numpy_dtype(DTYPE))

    def weight_names(self, model: str = "") -> dict[str, tuple[int, ...]]:
        return {"embed.weight": (VOCAB, D_MODEL), "big.weight": (1500, 1000)}

    def captures(self, model: str = "") -> list[StoredCapture]:
        return [entry for entry, _ in self.stored.values()]

    def capture(self, capture_id: str, model: str = "") -> Array:
        if capture_id not in self.stored:
            raise NotFound(f"no capture {capture_id!r}")
        return self.stored[capture_id][1]

    def delete_capture(self, capture_id: str, model: str = "") -> None:
        self.capture(capture_id)
        del self.stored[capture_id]

    def load_sae(self, request: LoadSaeRequest) -> SaeInfo:
        self.sae_requests.append(request)
        name, site = request.name or "sae", request.site or "resid_post.1"
        self.loaded_saes[name] = SaeInfo(name, "fake/model", site, "topk", 8, 32, 4, "float32", "00")
        return self.loaded_saes[name]

    def send_sae(self, part: SaePart) -> SaeReceived:
        self.sae_parts.append(part)
        if part.offset == len(self.sent):
            self.sent += part.data
        return SaeReceived(len(self.sent))

    def saes(self, model: str = "") -> list[SaeInfo]:
        return list(self.loaded_saes.values())

    def unload_sae(self, name: str, model: str = "") -> None:
        if name not in self.loaded_saes:
            raise NotFound(f"no SAE {name!r}")
        del self.loaded_saes[name]

    def load_variant(self, request: LoadVariantRequest) -> VariantInfo:
        return self.kept.load(request)

    def send_variant(self, part: SaePart) -> SaeReceived:
        return self.kept.send(part)

    def variants(self, model: str = "") -> list[VariantInfo]:
        return list(self.kept.kept.values())

    def variant(self, name: str, model: str = "") -> VariantInfo:
        return self.kept.get(name)

    def variant_part(self, request: VariantPartRequest) -> VariantPart:
        return self.kept.part(request)

    def unload_variant(self, name: str, model: str = "") -> None:
        self.kept.unload(name)

    def create_session(self, request: CreateSessionRequest) -> Session:
        return self.live.create(request)

    def update_session(self, request: UpdateSessionRequest) -> Session:
        return self.live.update(request)

    def session(self, session_id: str) -> Session:
        return self.live.get(session_id)

    def sessions(self) -> list[Session]:
        return list(self.live.kept.values())

    def delete_session(self, session_id: str) -> None:
        self.live.delete(session_id)

    def activity(self) -> ActivityReport:
        return self.report

    def health(self) -> HealthReport:
        return HealthReport(True, "all well", {"fake": "ready"})

    def close(self) -> None:
        self.closed = True


def prompt_ids(item: Input) -> tuple[int, ...]:
    """Token ids of an input; messages are rendered as `role:content;` and end with `assistant:`."""
    if item.token_ids is not None:
        return item.token_ids
    text = item.text
    if item.messages is not None:
        text = "".join(f"{m.role}:{m.content};" for m in item.messages) + "assistant:"
    return tuple(ord(c) for c in text or "")


def expected(site: str, tokens: list[int], d: int = D_MODEL) -> Array:
    """[pos, d]: what the unedited model has at a residual site, in bfloat16."""
    layer = Site.parse(site).layer or 0
    return np.array([[t + 1000 * layer] * d for t in tokens]).astype(numpy_dtype(DTYPE))


def _fail_if_told_to(item: Input) -> None:
    """A prompt `fail:CODE` raises that error; with `fail:CODE:1.5` it asks to come back in 1.5 s."""
    if item.text is not None and item.text.startswith("fail:"):
        _, code, *retry = item.text.split(":")
        raise error_from_code(Code[code], f"told to fail with {code}: ‖h‖", float(retry[0]) if retry else None)


def _shift(plan: Plan) -> int:
    adds = [h.edit for h in plan.hooks if isinstance(h.edit, Add) and h.site.startswith("resid_post")]
    return round(sum(add.alpha * float(add.vector.floats()[0]) for add in adds))


def _applies(hook: Hook, position: int, prompt: int) -> bool:
    where = hook.where
    if where.positions is not None and position not in [p + prompt if p < 0 else p for p in where.positions]:
        return False
    return where.phase == "all" or (where.phase == "prompt") == (position < prompt)


def _value(site: Site, plan: Plan, tokens: list[int], rows: list[int]) -> Array:
    layer = site.layer or 0
    if site.layer is not None and not 0 <= site.layer < N_LAYERS:
        raise InvalidArgument(f"site {site}: layers are 0:{N_LAYERS}")
    base = np.array([tokens[p] + 1000.0 * layer for p in rows])
    if site.axes == ("head", "query", "key"):
        return np.broadcast_to(base[None, :, None], (N_HEADS, len(rows), max(rows) + 1)).astype(numpy_dtype(DTYPE))
    widths = tuple(WIDTHS.get(axis, 4) for axis in site.axes[1:])
    out = np.broadcast_to(base.reshape(-1, *(1 for _ in widths)), (len(rows), *widths)).copy()
    for hook in plan.hooks:
        if isinstance(hook.edit, Add) and site in SitePattern.parse(hook.site).expand(N_LAYERS):
            out += hook.edit.alpha * hook.edit.vector.floats()
    return out.astype(numpy_dtype(DTYPE))


def _reduced(hook: Hook, values: Array) -> list[tuple[str, Array]]:
    reduce = hook.capture.reduce if hook.capture else None
    if isinstance(reduce, Norm):
        return [("", np.linalg.norm(values.astype(np.float32), axis=-1))]
    if isinstance(reduce, TopK):
        order = np.argsort(-values.astype(np.float32), axis=-1, kind="stable")[..., : reduce.k]
        return [("value", np.take_along_axis(values.astype(np.float32), order, -1)), ("index", order.astype(np.int32))]
    return [("", values)]
