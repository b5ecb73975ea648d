"""The front door of a notebook: prompts and hooks in, tokens and numpy arrays out, over any transport."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

from ..protos.errors import Internal, InvalidArgument
from ..protos.model import (
    GenerateRequest,
    HealthReport,
    LoadRequest,
    ModelInfo,
    RunRequest,
    Sampling,
    StoredCapture,
    Token,
    Tokenized,
    TokenizeRequest,
)
from ..protos.service import Service
from ..protos.spec import Plan
from ..protos.tensors import Array
from .addresses import connect
from .hooks import HookLike, Hooks, to_plan
from .inprocess import InProcessTransport
from .progress import progress_bar
from .prompts import Prompt, Prompts, to_input, to_inputs
from .results import Generation, Run, collect
from .stream import Stream

__all__ = ["DEFAULT_URL", "Captured", "Client", "SamplingOptions"]

DEFAULT_URL = "grpc://127.0.0.1:50051"

Captured = str | HookLike | Sequence[str | HookLike]
"""What to read: site names or patterns ("resid_post.10", "resid_post.*"), or hooks that capture."""


class SamplingOptions(TypedDict, total=False):
    """How the next token is chosen; see `protos.model.Sampling` for bounds and defaults."""

    max_new_tokens: int
    """128 by default."""
    temperature: float
    """0 (default) is greedy."""
    top_p: float
    top_k: int
    """0 (default): off."""
    seed: int | None
    """None (default): the server draws one and reports it."""
    stop: str | Sequence[str]
    logprobs: int | None
    """n: log-probability of the sampled token and of the n likeliest."""
    ignore_eos: bool


class Client:
    """A probewire server, or a service in this process. Every method raises ProbewireError and nothing else.

    Arrays that it gives are read-only views of what was received: `.copy()` one to change it.
    `hooks` apply in order and before `capture`, so captures see edited values. `model`: empty for the only one loaded.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        timeout_s: float | None = 600.0,
        service: Service | None = None,
    ) -> None:
        """`url` is grpc://host:50051 or http://host:8000 (grpcs, https: with TLS). Nothing is sent yet.

        `timeout_s` bounds each call, a whole stream included (None: no bound); loading a model is not bounded.
        """
        if service is not None:
            self._transport = InProcessTransport(service)
        else:
            self._transport = connect(url, api_key=api_key, timeout_s=timeout_s)

    @classmethod
    def inprocess(cls, service: Service) -> Self:
        """A client of a service in this process. Closing the client closes the service."""
        return cls(service=service)

    @property
    def address(self) -> str:
        """Where the calls go."""
        return self._transport.address

    # ---- inference ----

    def generate(
        self,
        prompt: Prompts,
        *,
        hooks: Hooks = (),
        capture: Captured = (),
        model: str = "",
        progress: bool = False,
        **sampling: Unpack[SamplingOptions],
    ) -> Generation:
        """Sample a continuation of each input, with hooks at work on the way."""
        return self._generate(_request(prompt, to_plan(hooks, capture), model, sampling), progress)

    def generate_with_activations(
        self,
        prompt_or_messages: Prompts,
        capture: Captured = (),
        *,
        hooks: Hooks = (),
        model: str = "",
        progress: bool = False,
        **sampling: Unpack[SamplingOptions],
    ) -> Generation:
        """As `generate`, and refuses a request that captures nothing: `capture=["resid_post.*"]`."""
        plan = to_plan(hooks, capture)
        if not any(hook.capture for hook in plan.hooks):
            raise InvalidArgument('generate_with_activations captures nothing; name sites: capture=["resid_post.*"]')
        return self._generate(_request(prompt_or_messages, plan, model, sampling), progress)

    def stream(
        self,
        prompt: Prompts,
        *,
        hooks: Hooks = (),
        capture: Captured = (),
        model: str = "",
        **sampling: Unpack[SamplingOptions],
    ) -> Stream:
        """Steps as they come: text and tensors of each token. Closing the stream cancels the request."""
        return Stream(self._transport.generate(_request(prompt, to_plan(hooks, capture), model, sampling)))

    def run(self, prompt: Prompts, *, capture: Captured = (), hooks: Hooks = (), model: str = "") -> Run:
        """One forward pass over each input, and what the hooks read in it."""
        request = RunRequest(to_inputs(prompt), model, to_plan(hooks, capture))
        return Run(*collect(self._transport.run(request), [item.name for item in request.inputs]))

    def _generate(self, request: GenerateRequest, progress: bool) -> Generation:
        expected = [item.name for item in request.inputs if not item.source_only]
        total = len(expected) * request.sampling.max_new_tokens
        with progress_bar("generating", "tokens", show=progress) as bar:
            done = 0

            def count(token: Token) -> None:
                nonlocal done
                done += 1
                bar(done, total)

            return Generation(*collect(self._transport.generate(request), expected, count))

    # ---- models ----

    def models(self) -> list[ModelInfo]:
        """Every loaded model."""
        return self._transport.models()

    def describe(self, model: str = "") -> ModelInfo:
        """One model: its sizes, and which sites it offers for what."""
        return self._transport.describe(model)

    def load(
        self,
        model: str,
        *,
        id: str = "",  # noqa: A002 - the word of the contract
        backend: str = "auto",
        dtype: str = "auto",
        revision: str = "",
        progress: bool = True,
    ) -> ModelInfo:
        """Load a model into a worker of its own and wait until it serves."""
        info: ModelInfo | None = None
        with progress_bar(f"loading {model}", "bytes", show=progress) as bar:
            for step in self._transport.load(LoadRequest(model, id, backend, dtype, revision)):
                info = step.info or info
                bar(step.done, step.total, f"{model}: {step.stage}")
        if info is None:
            raise Internal(f"loading {model!r} ended without saying what was loaded")
        return info

    def unload(self, model: str) -> None:
        """End a model's worker; its requests in flight end with Unavailable."""
        self._transport.unload(model)

    def tokenize(self, prompt: Prompt, *, model: str = "") -> Tokenized:
        """Token ids and texts of a prompt, as a request would use them."""
        return self._transport.tokenize(TokenizeRequest(to_input(prompt), model))

    def weight_names(self, *, model: str = "") -> dict[str, tuple[int, ...]]:
        """Every weight's name and shape, as in the checkpoint."""
        return self._transport.weight_names(model)

    def weights(self, name: str, *, model: str = "", progress: bool = True) -> Array:
        """One weight, named and shaped as in the checkpoint. Raises NotFound."""
        with progress_bar(f"fetching {name}", "bytes", show=progress) as bar:
            return _read_only(self._transport.weights(name, model, bar))

    # ---- captures kept on the server ----

    def captures(self, *, model: str = "") -> list[StoredCapture]:
        """Captures kept with `store`."""
        return self._transport.captures(model)

    def capture(self, capture_id: str, *, model: str = "") -> Array:
        """One stored capture, with the shape that `captures` lists."""
        return _read_only(self._transport.capture(capture_id, model))

    def delete_capture(self, capture_id: str, *, model: str = "") -> None:
        """Forget a stored capture."""
        self._transport.delete_capture(capture_id, model)

    # ---- the connection ----

    def health(self) -> HealthReport:
        """Whether the server can serve, found by a real forward."""
        return self._transport.health()

    def close(self) -> None:
        """Let go of the connection."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.address!r})"


def _request(prompt: Prompts, plan: Plan, model: str, sampling: SamplingOptions) -> GenerateRequest:
    unknown = sorted(set(sampling) - set(SamplingOptions.__annotations__))
    if unknown:
        raise InvalidArgument(f"unknown options {unknown}; allowed: {', '.join(SamplingOptions.__annotations__)}")
    options: dict[str, Any] = {**sampling}
    stop = sampling.get("stop", ())
    options["stop"] = (stop,) if isinstance(stop, str) else tuple(stop)
    return GenerateRequest(to_inputs(prompt), model, plan, Sampling(**options))


def _read_only(array: Array) -> Array:
    """The same memory, so that a service's own array cannot be changed through what we hand out."""
    view = array.view()
    view.flags.writeable = False
    return view
