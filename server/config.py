"""What an operator sets, a frozen dataclass a layer. Filled in `cli/serve/command.py`; the environment is read nowhere."""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.util import find_spec

from ..backends.model.limits import Limits as EngineLimits
from ..protos.errors import FailedPrecondition, InvalidArgument
from .auth.origins import Origin, host_name
from .auth.proxies import Proxies
from .service import Operations

__all__ = [
    "BACKENDS",
    "DTYPES",
    "Factory",
    "GatewayConfig",
    "Report",
    "RequestLimits",
    "Supervision",
    "WorkerConfig",
    "choose_backend",
]

BACKENDS = ("auto", "torch", "mlx")
DTYPES = ("auto", "float32", "bfloat16", "float16")

WORKER_MODULE = f"{__package__}.worker.main"
"""What a worker process runs."""
LOCAL_FACTORY = f"{__package__}.worker.operations:LocalOperations.create"


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Bounds on what a user sends and keeps. Past one: RESOURCE_EXHAUSTED."""

    max_request_bytes: int = 64 << 20
    max_prompt_tokens: int = 131_072
    """Of one input; the model's own context may be shorter."""
    max_new_tokens: int = 8_192
    """Of one input."""
    max_capture_bytes: int = 4 << 30
    """Tensor bytes that one request may send back, estimated before it starts."""
    max_store_bytes: int = 32 << 30
    """Captures kept with `store`, all users together."""
    store_ttl_s: int = 7 * 24 * 3600
    """How long a stored capture is kept."""
    max_sae_bytes: int = 8 << 30
    """Weights of one SAE."""
    max_saes: int = 64
    """SAEs that one user may have loaded."""
    max_variant_bytes: int = 1 << 30
    """Files of one variant."""
    max_variants: int = 64
    """Variants that one user may have loaded, versions counted."""
    max_all_variants: int = 1024
    """… and all users together."""
    max_queued: int = 512
    """Inputs that wait in a worker for their turn; no user may fill more than half."""
    max_wait_s: int = 600
    """How long one waits before it is refused."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if getattr(self, name) < 1:
                raise InvalidArgument(f"{name} must be 1 or more, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """All that a worker process is told, as one line of JSON on its standard input."""

    model: str
    """Default model's name, local folder, or Hugging Face id."""
    id: str
    """The name it is served under."""
    address: str = ""
    """Where the worker listens, as gRPC writes it: `unix:/tmp/…/0.sock`. Set at each start."""
    backend: str = "torch"
    """torch or mlx; `auto` is resolved before."""
    dtype: str = "auto"
    quantize: str = ""
    """int8 or int4: at load; empty: weights as they are."""
    revision: str = ""
    device: str = "auto"
    cache_dir: str = ""
    """Where checkpoints are kept; empty: the user's cache folder."""
    engine: EngineLimits = EngineLimits()
    """Slots and cache."""
    limits: RequestLimits = RequestLimits()
    threads: int | None = None
    """Of a model on the CPU; 0: as many as there are cores that nobody else keeps busy; None: as the library chooses."""
    drain_s: float = 5.0
    """How long requests in flight may go on once the worker is told to end."""
    state_dir: str = ""
    """The gateway's state folder, for stored captures; empty: a folder of the worker's own, gone with it."""
    sae_folders: tuple[str, ...] = ()
    """Where users who are not admins may load SAEs from, besides sending them along."""
    variant_folders: tuple[str, ...] = ()
    """… and variants."""
    factory: str = LOCAL_FACTORY
    """`module:function` that builds the worker's Operations; tests put a fake here."""


Report = Callable[[str, int, int | None], None]
"""How a load tells where it is, from any thread: stage, done and total bytes; None or 0 where not known."""

Factory = Callable[[WorkerConfig, Report], Awaitable[Operations]]
"""Builds what a worker serves. Raises ProbewireError."""


@dataclass(frozen=True, slots=True)
class Supervision:
    """How the gateway looks after its workers. Seconds throughout."""

    probe_interval_s: float = 10.0
    probe_timeout_s: float = 30.0
    """How long a worker may take over one real forward."""
    probe_strikes: int = 3
    """A worker is hung after so many probes in a row that failed, or had no answer, while none of its streams moved."""
    start_stall_s: float = 1800.0
    """A worker that reports nothing for so long while it loads is ended."""
    backoff_s: float = 0.5
    """Before the first restart; doubled for each further one."""
    backoff_max_s: float = 30.0
    max_restarts: int = 8
    """Deaths in a row, none of them after `stable_s` of service, before the model is given up as failed."""
    stable_s: float = 60.0
    kill_grace_s: float = 3.0
    """Beyond the worker's own `drain_s`, before SIGKILL."""

    @property
    def fresh_s(self) -> float:
        """How old a good probe may be for the model to count as ready."""
        return 2 * self.probe_interval_s + self.probe_timeout_s


@dataclass(frozen=True, slots=True)
class GatewayConfig:
    """The gateway, and what every worker that it starts has in common."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0: any free one."""
    grpc_port: int = 50051
    """0: any free one."""
    worker: WorkerConfig = WorkerConfig(model="", id="", backend="auto")
    """Defaults of a worker; a load fills in `model` and `id`."""
    supervision: Supervision = Supervision()
    max_models: int = 8
    """Loaded at once."""
    drain_s: float = 10.0
    """How long requests in flight may go on after SIGTERM."""
    state_dir: str = ""
    """Where users, sessions and stored captures are kept; empty: a folder that goes with the gateway."""
    audit: str = ""
    """File of the audit lines; empty: none are written."""
    audit_prompts: bool = False
    idle_unload_s: float = 0.0
    """A model that nobody has used for so long frees its memory until it is asked for; 0: never."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that HTTP callers may reach us by, besides loopback, our address, `host` and the certificate's."""
    allowed_origins: tuple[str, ...] = ()
    """Pages that may send us requests and read the answers, besides our own."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses and networks whose word is taken for who called them."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "allowed_hosts", tuple(map(host_name, self.allowed_hosts)))
        object.__setattr__(self, "allowed_origins", tuple(Origin.of(text).text for text in self.allowed_origins))
        Proxies.of(self.trusted_proxies)

    @property
    def limits(self) -> RequestLimits:
        """One set for the gateway and its workers."""
        return self.worker.limits


def choose_backend(name: str) -> str:
    """`auto` as torch or mlx, without importing either. Raises when the one asked for is not installed."""
    if name not in BACKENDS:
        raise InvalidArgument(f"unknown backend {name!r}; allowed: {', '.join(BACKENDS)}")
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    preferred = ("mlx", "torch") if apple else ("torch", "mlx")
    wanted = preferred if name == "auto" else (name,)
    for backend in wanted:
        if find_spec(backend) is not None:
            return backend
    extras = " or ".join(f"pip install 'probewire[{backend}]'" for backend in wanted)
    raise FailedPrecondition(f"backend {name!r} is not installed here; {extras}")
