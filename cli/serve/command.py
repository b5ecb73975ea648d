"""`probewire serve`: the options, and the config they make. `cli/serve/serving.py` runs it."""

from __future__ import annotations

import argparse
import asyncio
import logging
from dataclasses import replace
from pathlib import Path

from ...backends.checkpoints.quantised.at_load import QUANTIZE, quantised_id
from ...backends.model.limits import Limits as EngineLimits
from ...protos.errors import FailedPrecondition, InvalidArgument
from ...protos.hosts import canonical, is_loopback
from ...protos.loading import LoadRequest
from ...server.auth.users import Users
from ...server.config import BACKENDS, DTYPES, GatewayConfig, RequestLimits, Supervision, WorkerConfig
from ...server.model_names import default_id, parsed
from ...server.state.database import State, default_state_folder
from ..pull import cache_dir_from
from .log import start_log
from .serving import serve
from .tls import Tls

__all__ = ["add_arguments", "load_requests", "run"]

log = logging.getLogger(__name__)

DAY_S = 24 * 3600

_ENGINE, _LIMITS, _GATEWAY = EngineLimits(), RequestLimits(), GatewayConfig()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire serve` takes."""
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    parser.add_argument(
        "models",
        nargs="*",
        metavar="[ID=]MODEL[@BACKEND]",
        help="a Hugging Face id, a local folder or a .gguf file; with none, SmolLM2-135M-Instruct, fetched when it is not there. "
        "ID is the name it is served under. The same model on two backends: NAME@torch NAME@mlx, served as such",
    )
    parser.add_argument("--backend", choices=BACKENDS, default="auto", help="for models that name none")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: as the checkpoint and device have it")
    parser.add_argument(
        "--quantize",
        choices=tuple(QUANTIZE),
        default="",
        help="hold the layers' linear weights of plain checkpoints in 8 or 4 bits; served as ID-int8 or ID-int4",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda, cuda:1, or a list over which layers are placed: cuda:0,cuda:1; cuda:0,cpu (what does not fit waits in main memory)",
    )
    parser.add_argument("--revision", default="", help="branch, tag or commit of a Hugging Face model")
    parser.add_argument("--cache-dir", type=Path, default=None, help="where the default model is kept")
    _add_network(parser.add_argument_group("network"))
    _add_sizes(parser.add_argument_group("sizes and limits"))
    _add_keeping(parser.add_argument_group("what is kept"))
    parser.add_argument("--factory", default=WorkerConfig("", "").factory, help=argparse.SUPPRESS)


def _add_network(group: argparse._ArgumentGroup) -> None:  # pyright: ignore[reportPrivateUsage]  it has no public name
    group.add_argument("--host", default=_GATEWAY.host, help="address to listen on")
    group.add_argument("--port", type=int, default=_GATEWAY.port, help="of HTTP; 0: any free one")
    group.add_argument("--grpc-port", type=int, default=_GATEWAY.grpc_port, help="of gRPC; 0: any free one")
    group.add_argument(
        "--insecure", action="store_true", help="listen beyond this machine although the box has no users, so no keys"
    )
    group.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that HTTP callers may use for this server, besides localhost, the address it listens on, --host and "
        "the names in the certificate: a proxy's, say; may be given several times",
    )
    group.add_argument(
        "--allowed-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="a web page (https://tool.lab) that may send requests and read the answers; may be given several times",
    )
    group.add_argument(
        "--trusted-proxy",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="a proxy's address or network, whose X-Forwarded-For says who called; may be given several times",
    )
    group.add_argument("--tls-cert", type=Path, default=None, help="certificate chain (PEM) of both APIs")
    group.add_argument("--tls-key", type=Path, default=None, help="its private key (PEM)")
    group.add_argument(
        "--tls-client-ca", type=Path, default=None, help="clients must show a certificate signed by these (PEM)"
    )
    group.add_argument(
        "--ready-file",
        type=Path,
        default=None,
        help="write {http, grpc, pid} here as JSON once ready, and `failed` where a model could not be loaded",
    )
    group.add_argument(
        "--drain", type=float, default=_GATEWAY.drain_s, metavar="S", help="how long requests may go on after SIGTERM"
    )


def _add_sizes(group: argparse._ArgumentGroup) -> None:  # pyright: ignore[reportPrivateUsage]  as above
    group.add_argument("--slots", type=int, default=_ENGINE.n_slots, help="generations at once, a model")
    group.add_argument("--context", type=int, default=_ENGINE.context_tokens, help="positions one input may use")
    group.add_argument("--cache-tokens", type=int, default=_ENGINE.cache_tokens, help="positions of KV cache, a model")
    group.add_argument(
        "--chunk",
        type=int,
        default=0,
        help="prompt tokens in one forward; 0: as many as a fifth of a second holds, 64 … 512",
    )
    group.add_argument(
        "--threads",
        type=int,
        default=0,
        help="of each model on the CPU; 0: as many as there are cores that nothing else keeps busy, looked at twice a second",
    )
    group.add_argument("--max-prompt-tokens", type=int, default=_LIMITS.max_prompt_tokens, help="of one input")
    group.add_argument("--max-new-tokens", type=int, default=_LIMITS.max_new_tokens, help="of one input")
    group.add_argument("--max-request-mib", type=int, default=_LIMITS.max_request_bytes >> 20, help="of one request")
    group.add_argument("--max-store-mib", type=int, default=_LIMITS.max_store_bytes >> 20, help="of kept captures")
    group.add_argument("--store-days", type=float, default=_LIMITS.store_ttl_s / DAY_S, help="captures are kept for")
    group.add_argument("--max-variants", type=int, default=_LIMITS.max_variants, help="of one user, versions counted")
    group.add_argument("--max-variant-mib", type=int, default=_LIMITS.max_variant_bytes >> 20, help="of one variant")
    group.add_argument(
        "--variant-mib",
        type=int,
        default=_ENGINE.variant_bytes >> 20,
        help="of variants that a model keeps on its device beside those at work",
    )
    group.add_argument("--max-queued", type=int, default=_LIMITS.max_queued, help="inputs waiting, a model")
    group.add_argument("--max-wait", type=int, default=_LIMITS.max_wait_s, metavar="S", help="for a turn, at most")
    group.add_argument("--max-models", type=int, default=_GATEWAY.max_models, help="loaded at once")
    group.add_argument(
        "--idle-unload",
        type=float,
        default=_GATEWAY.idle_unload_s,
        metavar="S",
        help="free the memory of a model unused for so long, until it is asked for; 0: never",
    )


def _add_keeping(group: argparse._ArgumentGroup) -> None:  # pyright: ignore[reportPrivateUsage]  as above
    group.add_argument(
        "--sae-folder",
        type=Path,
        action="append",
        default=[],
        help="where users who are not admins may load sparse autoencoders from; may be given several times",
    )
    group.add_argument(
        "--variant-folder",
        type=Path,
        action="append",
        default=[],
        help="where users who are not admins may load variants and adapters from; may be given several times",
    )
    group.add_argument(
        "--state", type=Path, default=default_state_folder(), help="folder of users, sessions and stored captures"
    )
    group.add_argument("--audit", type=Path, default=None, help="append a JSON line a request to this file")
    group.add_argument("--audit-prompts", action="store_true", help="with the prompts")
    group.add_argument("--log-json", action="store_true", help="log JSON lines instead of text")


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop."""
    config = gateway_config(args)
    tls = Tls.of(args.tls_cert, args.tls_key, args.tls_client_ca)
    check_host(args.host, insecure=args.insecure, has_users=_has_users(args.state), secure=tls is not None)
    start_log(as_json=args.log_json)
    return asyncio.run(serve(config, load_requests(args.models, args.quantize), args.ready_file, tls))


def _has_users(state: Path) -> bool:
    opened = State(state)
    try:
        return Users(opened).any
    finally:
        opened.close()


def gateway_config(args: argparse.Namespace) -> GatewayConfig:
    """The options as config."""
    engine = replace(
        _ENGINE,
        n_slots=args.slots,
        context_tokens=args.context,
        cache_tokens=args.cache_tokens,
        chunk_tokens=args.chunk,
        variant_bytes=args.variant_mib << 20,
    )
    limits = replace(
        _LIMITS,
        max_prompt_tokens=args.max_prompt_tokens,
        max_new_tokens=args.max_new_tokens,
        max_request_bytes=args.max_request_mib << 20,
        max_store_bytes=args.max_store_mib << 20,
        store_ttl_s=max(1, round(args.store_days * DAY_S)),
        max_variants=args.max_variants,
        max_variant_bytes=args.max_variant_mib << 20,
        max_queued=args.max_queued,
        max_wait_s=args.max_wait,
    )
    cache_dir = cache_dir_from(args.cache_dir)
    worker = WorkerConfig(
        model="",
        id="",
        backend=args.backend,
        dtype=args.dtype,
        device=args.device,
        revision=args.revision,
        cache_dir=str(cache_dir) if cache_dir else "",
        engine=engine,
        threads=args.threads,
        limits=limits,
        sae_folders=tuple(str(folder.expanduser().resolve()) for folder in args.sae_folder),
        variant_folders=tuple(str(folder.expanduser().resolve()) for folder in args.variant_folder),
        factory=args.factory,
    )
    return GatewayConfig(
        host=canonical(args.host),  # [::1] is how it is written beside a port
        port=args.port,
        grpc_port=args.grpc_port,
        worker=worker,
        supervision=Supervision(),
        max_models=args.max_models,
        drain_s=args.drain,
        state_dir=str(args.state),
        audit=str(args.audit or ""),
        audit_prompts=args.audit_prompts,
        idle_unload_s=args.idle_unload,
        allowed_hosts=tuple(args.allowed_host),
        allowed_origins=tuple(args.allowed_origin),
        trusted_proxies=tuple(args.trusted_proxy),
    )


def load_requests(models: list[str], quantize: str = "") -> list[LoadRequest]:
    """What to load, from `[ID=]MODEL[@BACKEND]`; the default model when nothing is named."""
    asked = [parsed(LoadRequest(text, quantize=quantize)) for text in models or [""]]
    bare = [default_id(request.model) for request in asked]
    requests = [_named(request, repeated=bare.count(default_id(request.model)) > 1) for request in asked]
    ids = [request.id for request in requests]
    if len(set(ids)) != len(ids):
        raise InvalidArgument(f"two models would be served as {ids}; name them apart: ID=MODEL or MODEL@BACKEND")
    return requests


def _named(request: LoadRequest, *, repeated: bool) -> LoadRequest:
    if request.id:
        return request
    name = quantised_id(default_id(request.model), request.quantize)
    return replace(request, id=f"{name}@{request.backend}" if repeated and request.backend != "auto" else name)


def check_host(host: str, *, insecure: bool, has_users: bool = False, secure: bool = False) -> None:
    """Raise FailedPrecondition for an address that others can reach without a key, unless the operator insists."""
    loopback = is_loopback(host)
    if not loopback and not has_users and not insecure:
        raise FailedPrecondition(
            f"--host {host} would let anyone who reaches this machine use the models and load others: this box has no "
            "users. Make some (`probewire users add NAME --role admin`), or keep --host 127.0.0.1 and use an ssh "
            "tunnel (ssh -L 8000:localhost:8000 -L 50051:localhost:50051 BOX), or pass --insecure on a network you trust"
        )
    if not loopback and not secure:
        log.warning(
            "keys, prompts and tensors travel unencrypted to and from %s; give --tls-cert and --tls-key, or put a "
            "TLS proxy in front",
            host,
        )
