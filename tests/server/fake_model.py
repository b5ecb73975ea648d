"""A small, deterministic `Operations`: one token a character, values that name their site and position.

The prompt steers it: `raise:CODE` refuses at once, `raise:CODE@n` fails after n tokens, `crash` and `crash@n` raise
something that is not ours, `hang` and `hang@n` never go on, `<eos>` ends the text after two tokens.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
from fake_saes import FakeSaes
from fake_variants import FakeVariants

from probewire.protos.errors import Code, FailedPrecondition, InvalidArgument, NotFound, error_from_code
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
    ResolvedHook,
    RunRequest,
    SiteInfo,
    Started,
    StoredCapture,
    TensorFrame,
    Token,
    Tokenized,
    TokenizeRequest,
    TokenizerInfo,
    TokenLogprob,
    Usage,
)
from probewire.protos.saes import SaeInfo
from probewire.protos.service import InferenceRequest
from probewire.protos.sites import ATTENTION_SITES, LAYER_SITES, Site, SitePattern
from probewire.protos.spec import Hook, Last, Mean, Plan
from probewire.protos.sweeps import SweepRequest
from probewire.protos.tensors import Array, Tensor
from tests.kept_variants import KeptVariants

N_LAYERS, D_MODEL, N_HEADS, D_HEAD, VOCAB = 3, 4, 2, 2, 128
WIDTHS = {"d_model": D_MODEL, "head": N_HEADS, "kv_head": N_HEADS, "d_head": D_HEAD, "vocab": VOCAB, "d_mlp": 6}
NOT_OFFERED = {"router_logits", "expert_weights"}
RUN_ONLY = {"attn_scores"}

_TRICK = re.compile(r"(raise:(?P<code>[A-Z_]+)|crash|hang)(@(?P<after>\d+))?")


def fake_info(name: str = "fake/model") -> ModelInfo:
    def site(kind: str, axes: tuple[str, ...], layers: tuple[int, ...] | None) -> SiteInfo:
        widths = tuple(WIDTHS.get(axis, 0) for axis in axes[1:])
        note = "its rows are reached in runs only" if kind in RUN_ONLY else ""
        return SiteInfo(kind, axes, widths, layers, generate=kind not in RUN_ONLY, edits=("add", "scale"), note=note)

    layers = tuple(range(N_LAYERS))
    sites = tuple(site(kind, axes, layers) for kind, axes in LAYER_SITES.items() if kind not in NOT_OFFERED)
    sites = (site("embed", ("pos", "d_model"), None), *sites, site("logits", ("pos", "vocab"), None))
    return ModelInfo(
        id=name,
        family="llama",
        architecture="fake",
        backend="fake",
        device="cpu",
        dtype="bfloat16",
        attention="eager",
        model_hash="f00d",
        n_layers=N_LAYERS,
        d_model=D_MODEL,
        n_heads=N_HEADS,
        n_kv_heads=N_HEADS,
        d_head=D_HEAD,
        d_mlp=6,
        vocab_size=VOCAB,
        context_length=2048,
        chat_template=True,
        n_slots=4,
        sites=sites,
        versions={"fake": "1"},
    )


def value(site: Site, positions: list[int]) -> Array:
    """The fake's tensor at a site: [pos, …] or [head, query, key], bfloat16-exact numbers."""
    first = sum(map(ord, site.name)) % 8 + (site.layer or 0)
    if site.name in ATTENTION_SITES:
        rows = [[[first + key for key in range(max(positions) + 1)] for _ in positions] for _ in range(N_HEADS)]
        array = np.array(rows, np.float32)
        query, key = np.array(positions)[:, None], np.arange(max(positions) + 1)[None]
        return np.where(key <= query, array, -np.inf if site.name == "attn_scores" else 0).astype(np.float32)
    shape = tuple(WIDTHS[axis] for axis in site.axes[1:])
    return np.stack([np.full(shape, first + position, np.float32) for position in positions])


def render(item: Input) -> list[int]:
    if item.token_ids is not None:
        return list(item.token_ids)
    text = item.text
    if item.messages is not None:
        text = "".join(f"<{message.role}>{message.content}\n" for message in item.messages)
    assert text is not None
    return [ord(c) % VOCAB for c in text]


@dataclass
class FakeOperations(FakeVariants, FakeSaes):
    """What it was asked is in `requests`; how many streams were closed before their end is in `cancelled`."""

    requests: list[InferenceRequest | LoadRequest] = field(default_factory=list)
    cancelled: int = 0
    running: int = 0
    ready: bool = True
    delay_s: float = 0.0
    loaded: dict[str, ModelInfo] = field(default_factory=lambda: {"fake/model": fake_info()})
    stored: dict[str, tuple[StoredCapture, Tensor]] = field(default_factory=dict)
    loaded_saes: dict[str, SaeInfo] = field(default_factory=dict)
    kept: KeptVariants = field(default_factory=KeptVariants)
    health_delay_s: float = 0.0

    # ---- streams ----

    async def generate(self, request: GenerateRequest) -> AsyncIterator[list[Event]]:
        async for events in self._guarded(request, self._generate(request)):
            yield events

    async def run(self, request: RunRequest) -> AsyncIterator[list[Event]]:
        async for events in self._guarded(request, self._run(request)):
            yield events

    async def gradients(self, request: GradientsRequest) -> AsyncIterator[list[Event]]:
        async for events in self._guarded(request, self._gradients(request)):
            yield events

    async def sweep(self, request: SweepRequest) -> AsyncIterator[list[Event]]:
        async for events in self._guarded(request, self._sweep(request)):
            yield events

    async def _guarded(
        self, request: InferenceRequest, stream: AsyncIterator[list[Event]]
    ) -> AsyncIterator[list[Event]]:
        self.requests.append(request)
        self._info(request.model)
        whole = False
        self.running += 1
        try:
            async for events in stream:
                yield events
            whole = True
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += not whole
            raise
        finally:
            self.running -= 1

    async def _generate(self, request: GenerateRequest) -> AsyncIterator[list[Event]]:
        await self._trick(request, None)
        info, limit = self._info(request.model), request.sampling.max_new_tokens
        yield [self._started(request, request.plan, info)]
        live = {item.name: _Text(item, request, index) for index, item in enumerate(request.inputs)}
        live = {name: text for name, text in live.items() if not text.item.source_only}
        for step in range(limit):
            await self._trick(request, step)
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            events: list[Event] = []
            for name, text in list(live.items()):
                events += frames(request.plan, text.item, text.positions(step), text.n_prompt, step)
                events += text.step(step, limit)
                if isinstance(events[-1], Finished):
                    del live[name]
            yield events
            if not live:
                return

    async def _run(self, request: RunRequest) -> AsyncIterator[list[Event]]:
        await self._trick(request, None)
        yield [self._started(request, request.plan, self._info(request.model))]
        await self._trick(request, 0)
        for item in request.inputs:
            n = len(render(item))
            found: list[Event] = [*frames(request.plan, item, list(range(n)), n, 0)]
            yield [*found, Finished(item.name, "run", Usage(n))]

    async def _gradients(self, request: GradientsRequest) -> AsyncIterator[list[Event]]:
        await self._trick(request, None)
        yield [self._started(request, request.plan, self._info(request.model))]
        for item in (item for item in request.inputs if not item.source_only):
            ids = render(item)
            found = frames(request.plan, item, list(range(len(ids))), len(ids), 0)
            measured = Measured(item.name, Tensor.of(np.array([[sum(ids)]], dtype=np.float64)))
            yield [measured, *found, Finished(item.name, "run", Usage(len(ids)))]

    async def _sweep(self, request: SweepRequest) -> AsyncIterator[list[Event]]:
        """Each plan's own index, a step a plan; target t adds t/10."""
        await self._trick(request, None)
        yield [self._started(request, request.base, self._info(request.model))]
        for item in (item for item in request.inputs if not item.source_only):
            n_targets = len(targets_of(item, request.targets))
            for plan in range(len(request.plans)):
                await self._trick(request, plan)
                values = np.array([[plan + target / 10 for target in range(n_targets)]])
                yield [Measured(item.name, Tensor.of(values), (plan,))]
            yield [Finished(item.name, "run", Usage(len(render(item))))]

    async def _trick(self, request: InferenceRequest, step: int | None) -> None:
        for item in request.inputs:
            match = _TRICK.search("".join(map(chr, render(item))))
            if match is None or (None if match["after"] is None else int(match["after"])) != step:
                continue
            if match["code"]:
                raise error_from_code(Code[match["code"]], f"told to: {match[0]}", 1.5)
            if match[0].startswith("crash"):
                raise RuntimeError("a secret of the server")
            await asyncio.Event().wait()

    def _started(self, request: InferenceRequest, plan: Plan, info: ModelInfo) -> Started:
        hooks = [
            ResolvedHook(i, hook.id or f"hook{i}", tuple(str(s) for s in SitePattern.parse(hook.site).expand(N_LAYERS)))
            for i, hook in enumerate(plan.hooks)
        ]
        inputs = [(item, tuple(render(item))) for item in request.inputs]
        return Started(
            "request1",
            info.id,
            info.model_hash,
            info.backend,
            info.device,
            info.dtype,
            info.attention,
            info.versions,
            tuple(hooks),
            tuple(InputStarted(item.name, ids, tuple(map(chr, ids)), seed=7) for item, ids in inputs),
        )

    # ---- models ----

    def _info(self, model: str) -> ModelInfo:
        if not model and len(self.loaded) == 1:
            return next(iter(self.loaded.values()))
        if not self.loaded:
            raise FailedPrecondition("no model is loaded")
        if model not in self.loaded:
            raise NotFound(f"no model {model!r}; loaded: {', '.join(self.loaded)}")
        return self.loaded[model]

    async def models(self) -> list[ModelInfo]:
        return list(self.loaded.values())

    async def describe(self, model: str) -> ModelInfo:
        return self._info(model)

    async def load(self, request: LoadRequest) -> AsyncIterator[LoadProgress]:
        self.requests.append(request)
        if request.model == "missing":
            raise NotFound("no checkpoint at 'missing'")
        yield LoadProgress("reading", 1, 2)
        if request.model == "broken":
            raise FailedPrecondition("the checkpoint is broken")
        info = fake_info(request.id or request.model)
        self.loaded[info.id] = info
        yield LoadProgress("ready", 2, 2, info)

    async def unload(self, model: str) -> None:
        self._info(model)
        del self.loaded[model]

    async def tokenize(self, request: TokenizeRequest) -> Tokenized:
        ids = render(request.input)
        raw = tuple(chr(i).encode() for i in ids)
        return Tokenized(tuple(ids), tuple(map(chr, ids)), "".join(map(chr, ids)), raw)

    async def tokenizer_info(self, model: str) -> TokenizerInfo:
        self._info(model)
        return TokenizerInfo(eos_token="z", chat_template="{{ messages }}")

    # ---- tensors ----

    async def weight_names(self, model: str) -> dict[str, tuple[int, ...]]:
        self._info(model)
        return {"model.layers.0/odd.weight": (2, 3)}

    async def weights(self, name: str, model: str) -> Tensor:
        shape = (await self.weight_names(model)).get(name)
        if shape is None:
            raise NotFound(f"no weight {name!r}")
        return Tensor.of(np.arange(6, dtype=np.float32).reshape(shape).astype(ml_dtypes.bfloat16))

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
        await asyncio.sleep(self.health_delay_s)
        state = "ready" if self.ready else "restarting: the worker was killed"
        return HealthReport(self.ready, "a forward ran" if self.ready else "no", dict.fromkeys(self.loaded, state))


class _Text:
    """One input's continuation: letters from `a` on, the input's index apart."""

    def __init__(self, item: Input, request: GenerateRequest, index: int) -> None:
        self.item, self.sampling, self.index = item, request.sampling, index
        self.n_prompt = len(render(item))
        self.text = ""

    def positions(self, step: int) -> list[int]:
        return list(range(self.n_prompt)) if step == 0 else [self.n_prompt + step - 1]

    def step(self, step: int, limit: int) -> Iterator[Event]:
        letter = chr(ord("a") + (self.index + step) % 26)
        stop = any((self.text + letter).endswith(text) for text in self.sampling.stop)
        self.text += letter
        wanted = self.sampling.logprobs
        top = tuple(
            TokenLogprob(ord(letter) + i, chr(ord(letter) + i), -0.5 - i, chr(ord(letter) + i).encode())
            for i in range(wanted or 0)
        )
        logprob = None if wanted is None else -0.5
        yield Token(self.item.name, step, ord(letter), "" if stop else letter, logprob, top)
        eos = step == 1 and "<eos>" in (self.item.text or "")
        if stop or eos or step + 1 == limit:
            reason = "stop" if stop else "eos" if eos else "length"
            yield Finished(self.item.name, reason, Usage(self.n_prompt, step + 1))


def frames(plan: Plan, item: Input, positions: list[int], n_prompt: int, step: int) -> Iterator[TensorFrame]:
    """What the plan's captures send in one step. `last` and `mean` are sent with the first."""
    for index, hook in enumerate(plan.hooks):
        if hook.capture is None or (hook.inputs is not None and item.name not in hook.inputs):
            continue
        chosen = [position for position in positions if _chosen(hook, position, n_prompt)]
        reduce = hook.capture.reduce
        if not chosen or (reduce is not None and step > 0):
            continue
        sites = SitePattern.parse(hook.site).expand(N_LAYERS)
        if any(site.name in NOT_OFFERED for site in sites):
            raise InvalidArgument(f"{hook.site}: this model has no experts")
        values = np.stack([value(site, chosen) for site in sites])
        if isinstance(reduce, Mean):
            values, chosen = values.mean(1, keepdims=True), []
        elif isinstance(reduce, Last):
            values, chosen = values[:, -1:], chosen[-1:]
        values = values.astype(np.float32 if hook.capture.dtype == "float32" or reduce else ml_dtypes.bfloat16)
        names = tuple(map(str, sites))
        yield TensorFrame(item.name, index, hook.id or f"hook{index}", names, tuple(chosen), step, Tensor.of(values))


def _chosen(hook: Hook, position: int, n_prompt: int) -> bool:
    where = hook.where
    if where.positions is not None and position not in {p % n_prompt if p < 0 else p for p in where.positions}:
        return False
    return where.phase == "all" or (where.phase == "prompt") == (position < n_prompt)
