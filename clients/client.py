"""The front door of a notebook: prompts and hooks in, tokens and numpy arrays out, over any transport."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from ..protos.activity import ActivityReport
from ..protos.errors import Internal, InvalidArgument
from ..protos.gradients import GradientsRequest, IntegratedPath
from ..protos.loading import HealthReport, LoadRequest
from ..protos.model import GenerateRequest, ModelInfo, RunRequest, StoredCapture, Token, Tokenized, TokenizeRequest
from ..protos.saes import LoadSaeRequest, SaeInfo
from ..protos.service import Service
from ..protos.sessions import CreateSessionRequest
from ..protos.spec import Plan
from ..protos.sweeps import SweepRequest
from ..protos.tensors import Array
from .addresses import connect
from .hooks import HookLike, Hooks, to_gradient_plan, to_plan
from .inprocess import InProcessTransport
from .progress import progress_bar
from .prompts import Prompt, Prompts, to_input, to_inputs
from .results import Generation, Gradients, Run, collect
from .sae_files import sae_files
from .sampling import SamplingOptions, to_sampling
from .session import LiveSession
from .stream import Stream
from .sweep import Sweep, collect_sweep, sweep_axes
from .targets import Targets, to_targets
from .tls import read_tls
from .tokens import one_token

__all__ = ["DEFAULT_URL", "Captured", "Client"]

DEFAULT_URL = "grpc://127.0.0.1:50051"

Captured = str | HookLike | Sequence[str | HookLike]
"""What to read: site names or patterns ("resid_post.10", "resid_post.*"), or hooks that capture."""


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
        ca_file: str | Path | None = None,
        cert_file: str | Path | None = None,
        key_file: str | Path | None = None,
        timeout_s: float | None = 600.0,
        service: Service | None = None,
    ) -> None:
        """`url` is grpc://host:50051 or http://host:8000 (grpcs, https: with TLS). Nothing is sent yet.

        `ca_file` (PEM) is trusted in place of the usual authorities; `cert_file` and `key_file` are your own
        certificate, for servers that ask for one. `timeout_s` bounds each call, a whole stream included (None: no
        bound); loading a model is not bounded.
        """
        if service is not None:
            self._transport = InProcessTransport(service)
        else:
            tls = read_tls(ca_file, cert_file, key_file)
            self._transport = connect(url, api_key=api_key, timeout_s=timeout_s, tls=tls)

    @classmethod
    def inprocess(cls, service: Service) -> Self:
        """A client of a service in this process. Closing the client closes the service."""
        return cls(service=service)

    @property
    def address(self) -> str:
        """Where the calls go."""
        return self._transport.address

    @property
    def is_here(self) -> bool:
        """Whether the server is on this machine, as far as its address says: a tunnel looks the same."""
        return self._transport.is_here

    # ---- inference ----

    def generate(
        self,
        prompt: Prompts,
        *,
        hooks: Hooks = (),
        capture: Captured = (),
        session: LiveSession | str = "",
        model: str = "",
        progress: bool = False,
        **sampling: Unpack[SamplingOptions],
    ) -> Generation:
        """Sample a continuation of each input, with hooks at work on the way: those of the `session` as it goes, then these."""
        return self._generate(_request(prompt, to_plan(hooks, capture), session, model, sampling), progress)

    def generate_with_activations(
        self,
        prompt_or_messages: Prompts,
        capture: Captured = (),
        *,
        hooks: Hooks = (),
        session: LiveSession | str = "",
        model: str = "",
        progress: bool = False,
        **sampling: Unpack[SamplingOptions],
    ) -> Generation:
        """As `generate`, and refuses a request that captures nothing: `capture=["resid_post.*"]`."""
        request = _request(prompt_or_messages, to_plan(hooks, capture), session, model, sampling)
        if not _captures(request.plan) and not self._session_captures(request.session):
            raise InvalidArgument('generate_with_activations captures nothing; name sites: capture=["resid_post.*"]')
        return self._generate(request, progress)

    def _session_captures(self, session_id: str) -> bool:
        return bool(session_id) and _captures(self._transport.session(session_id).plan)

    def stream(
        self,
        prompt: Prompts,
        *,
        hooks: Hooks = (),
        capture: Captured = (),
        session: LiveSession | str = "",
        model: str = "",
        **sampling: Unpack[SamplingOptions],
    ) -> Stream:
        """Steps as they come: text and tensors of each token. Closing the stream cancels the request."""
        plan = to_plan(hooks, capture)
        return Stream(self._transport.generate(_request(prompt, plan, session, model, sampling)))

    def run(self, prompt: Prompts, *, capture: Captured = (), hooks: Hooks = (), model: str = "") -> Run:
        """One forward pass over each input, and what the hooks read in it."""
        request = RunRequest(to_inputs(prompt), model, to_plan(hooks, capture))
        return Run(
            *collect(self._transport.run(request), [item.name for item in request.inputs if not item.source_only])
        )

    def gradients(
        self,
        prompt: Prompts,
        target: Targets,
        *,
        at: Captured = (),
        capture: Captured = (),
        hooks: Hooks = (),
        rules: Sequence[str] = (),
        direct: bool = False,
        path: IntegratedPath | None = None,
        model: str = "",
    ) -> Gradients:
        """The gradient of a metric at sites of each input: one forward, one backward.

        `at`: sites whose gradient comes back; `capture`: sites whose value does, from the same forward. `rules`: of the
        backward pass, any of ln, identity, half, ah (protos/gradients.py says what they are; with all four, value times
        gradient is RelP). `direct`: block every MLP but the target's own. `path`: average the gradient along a line.
        Every input needs one target; for several targets of one prompt name it several times.
        """
        plan = to_gradient_plan(hooks, capture, at)
        if path is not None and not isinstance(path, IntegratedPath):  # pyright: ignore[reportUnnecessaryIsInstance] - notebooks
            raise InvalidArgument(
                f"path is an IntegratedPath (a line to average along, not sites: those go in at), got {path!r}"
            )
        inputs = to_inputs(prompt)
        request = GradientsRequest(inputs, to_targets(target), model, plan, _rules(rules), direct, path)
        return Gradients(*collect(self._transport.gradients(request), [i.name for i in inputs if not i.source_only]))

    def sweep(
        self,
        prompt: Prompts,
        target: Targets,
        plans: Sequence[Hooks],
        *,
        hooks: Hooks = (),
        axes: Mapping[str, Sequence[Any]] | None = None,
        share: bool = True,
        progress: bool = True,
        model: str = "",
    ) -> Sweep:
        """What each of many plans does to a metric of each input: every layer, position, head …

        Every plan (a list of hooks that edit) runs on every input, after `hooks`, which are common to all. `axes` names
        what the plans lie along, in C order: {"layer": [...], "position": [...]}. `share` reuses what no edit can
        change; the numbers are the same without.
        """
        inputs, named = to_inputs(prompt), sweep_axes(axes, len(plans))
        listed = tuple(to_plan(plan) for plan in plans)
        request = SweepRequest(inputs, to_targets(target), listed, model, to_plan(hooks), share)
        expected = [item.name for item in inputs if not item.source_only]
        total = len(expected) * len(plans)
        with progress_bar("sweeping", "plans", show=progress) as bar:
            events = self._transport.sweep(request)
            started, measured = collect_sweep(events, expected, len(plans), lambda done: bar(done, total))
        return Sweep(started, measured, named)

    def token(self, text: str, *, model: str = "") -> int:
        """The id of the one token that a text is behind other text. Raises InvalidArgument when it is several, or none."""
        return one_token(text, lambda t: self.tokenize(t, model=model))

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

    # ---- live sessions ----

    def session(self, hooks: Hooks = (), *, name: str = "", model: str = "") -> LiveSession:
        """Make a live session: hooks that generations bound to it follow while you change them.

        Its hooks may not name inputs, read other inputs, or store. Used in a `with`, it is deleted at the end.
        """
        request = CreateSessionRequest(to_plan(hooks), model, name)
        return LiveSession(self._transport, self._transport.create_session(request))

    def sessions(self) -> list[LiveSession]:
        """Yours, oldest first."""
        return [LiveSession(self._transport, session) for session in self._transport.sessions()]

    def get_session(self, session_id: str) -> LiveSession:
        """One of yours. Raises NotFound."""
        return LiveSession(self._transport, self._transport.session(session_id))

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
        """Load a model into a worker of its own and wait until it serves. `model`: `[ID=]MODEL[@BACKEND]`, as `serve` takes it."""
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

    # ---- sparse autoencoders on the server ----

    def load_sae(
        self,
        source: str | Path,
        *,
        site: str = "",
        name: str = "",
        shared: bool = False,
        dtype: str = "auto",
        upload: bool | None = None,
        model: str = "",
        progress: bool = True,
    ) -> SaeInfo:
        """Load an SAE, as sae-lens saves it, onto a site: hooks then name it (`capture(site, latents=name, top_k=32)`).

        `source`: a folder, or `owner/repo[@revision]/path` on the Hugging Face hub. A folder of this machine is read by
        a server that runs on it, and sent along to any other; `upload` says which. `site`: left out, as the SAE's config
        says (TransformerLens names too). `dtype`: in which it works; auto: as its config says. `shared`: all users may use it.
        """
        folder = Path(source).expanduser()
        if upload is None:
            upload = folder.is_dir() and not self._transport.is_here
        if upload:
            files = sae_files(folder, self._transport, progress=progress)
            request = LoadSaeRequest(name or folder.name, model, "", files, site, dtype, shared)
        else:
            told = str(folder.resolve()) if folder.is_dir() else str(source)
            request = LoadSaeRequest(name, model, told, None, site, dtype, shared)
        info = self._transport.load_sae(request)
        if info.own_site not in ("", info.site):
            told = f"SAE {info.name!r} was trained at {info.own_site}, and is loaded onto {info.site}, where its latents may mean nothing"
            warnings.warn(told, stacklevel=2)
        return info

    def saes(self, *, model: str = "") -> list[SaeInfo]:
        """Your SAEs, and those that others share."""
        return self._transport.saes(model)

    def unload_sae(self, name: str, *, model: str = "") -> None:
        """Forget an SAE; requests that run with it go on."""
        self._transport.unload_sae(name, model)

    # ---- the server and the connection ----

    def activity(self) -> ActivityReport:
        """Who is running what: models, and requests under way. It holds no prompts."""
        return self._transport.activity()

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


def _request(
    prompt: Prompts, plan: Plan, session: LiveSession | str, model: str, sampling: SamplingOptions
) -> GenerateRequest:
    if isinstance(session, LiveSession):
        session, model = session.id, model or session.model
    return GenerateRequest(to_inputs(prompt), model, plan, to_sampling(sampling), session)


def _rules(rules: Sequence[str]) -> tuple[str, ...]:
    return (rules,) if isinstance(rules, str) else tuple(rules)


def _captures(plan: Plan) -> bool:
    return any(hook.capture for hook in plan.hooks)


def _read_only(array: Array) -> Array:
    """The same memory, so that a service's own array cannot be changed through what we hand out."""
    view = array.view()
    view.flags.writeable = False
    return view
