"""Runs the gateway: both APIs on one event loop, from the first bind to the last worker's end."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console

from ...protos.errors import FailedPrecondition, ProbewireError
from ...protos.loading import LoadRequest
from ...protos.model import ModelInfo
from ...server.api.grpc.service import RpcServer, admit_at_the_door
from ...server.auth.proxies import Proxies
from ...server.config import GatewayConfig
from ...server.gateway.gateway import Gateway
from ...server.memory import allow_many_connections, keep_freed_memory
from ..converted import told_of_converted
from ..version import VERSION
from .http import HttpServer
from .load_bars import LoadBars
from .tls import Tls

__all__ = ["serve"]

log = logging.getLogger(__name__)


async def serve(
    config: GatewayConfig, requests: list[LoadRequest], ready_file: Path | None = None, tls: Tls | None = None
) -> int:
    """Serve until SIGINT or SIGTERM; gives the exit status. Raises when a port is taken or no model can load."""
    keep_freed_memory()
    allow_many_connections()
    console = Console(stderr=True)
    gateway = Gateway(config)
    stop = _stop_signal(gateway, console)
    door = admit_at_the_door(gateway.policy.access, Proxies.of(config.trusted_proxies))
    rpc = RpcServer(gateway, door, max_request_bytes=config.limits.max_request_bytes, streams=gateway.streams)
    try:
        listener = _listen(config.host, config.port)
        http_url = f"{'https' if tls else 'http'}://{_bracketed(config.host)}:{listener.getsockname()[1]}"
        grpc_port = rpc.bind(f"{_bracketed(config.host)}:{config.grpc_port}", tls and tls.credentials())
        grpc_url = f"{'grpcs' if tls else 'grpc'}://{_bracketed(config.host)}:{grpc_port}"
        http = HttpServer(gateway, config, tls)
        await rpc.start()
        serving = asyncio.create_task(http.serve(sockets=[listener]))
        try:
            failed = await _loaded(gateway, requests, stop, console)
            if failed is not None:
                if kept := await asyncio.to_thread(told_of_converted, _path(config.worker.cache_dir)):
                    log.info(kept)
                models = [worker.info for worker in gateway.workers.values() if worker.info is not None]
                _announce(models, failed, http_url, grpc_url, has_users=gateway.users.any)
                if ready_file is not None:
                    told = {"http": http_url, "grpc": grpc_url, "pid": os.getpid()}
                    _write(ready_file, {**told, "failed": failed} if failed else told)
                await stop.wait()
        finally:
            gateway.drain()
            http.should_exit = True
            await asyncio.gather(rpc.stop(config.drain_s), serving)
    finally:
        await gateway.close()
    return 0


def _stop_signal(gateway: Gateway, console: Console) -> asyncio.Event:
    """Set by the first SIGINT or SIGTERM; the second ends everything at once."""
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            gateway.kill()
            os._exit(1)
        console.print("stopping: requests in flight may finish (once more to end at once)")
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return stop


async def _loaded(
    gateway: Gateway, requests: list[LoadRequest], stop: asyncio.Event, console: Console
) -> dict[str, str] | None:
    """Load all of them at once, with a bar each. Those that could not be, and why; None when told to stop before the end.

    Raises when none could be.
    """
    stopped = asyncio.create_task(stop.wait())
    try:
        with LoadBars(console) as bars:
            loads = [asyncio.create_task(_load(gateway, request, bars)) for request in requests]
            try:
                everything = asyncio.gather(*loads)
                await asyncio.wait([everything, stopped], return_when=asyncio.FIRST_COMPLETED)
                if stopped.done():
                    return None
                ended = dict(zip((request.id for request in requests), await everything, strict=True))
                failed = {name: error for name, error in ended.items() if error is not None}
                if len(failed) == len(ended):
                    raise next(iter(failed.values()))
                return {name: error.message for name, error in failed.items()}
            finally:
                for load in loads:
                    load.cancel()
                await asyncio.gather(*loads, return_exceptions=True)
    finally:
        stopped.cancel()


async def _load(gateway: Gateway, request: LoadRequest, bars: LoadBars) -> ProbewireError | None:
    """Why it could not be loaded, where the fault is the model's; raises where the request itself is refused."""
    try:
        async for progress in gateway.load_for_operator(request, keep_failed=True):
            bars.show(request.id, progress)
    except ProbewireError as error:
        worker = gateway.workers.get(request.id)
        if worker is None or not worker.never_loaded:
            raise
        return error
    return None


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        fixes = {
            errno.EADDRINUSE: "the port is in use; stop what holds it, or choose another with --port (0: any free one)",
            errno.EACCES: "ports below 1024 need privileges; choose another with --port",
            errno.EADDRNOTAVAIL: "this machine has no such address; see --host",
        }
        reason = fixes.get(error.errno or 0, str(error))
        raise FailedPrecondition(f"cannot listen on {_bracketed(host)}:{port}: {reason}") from None
    # Connections inherit it. asyncio sets it only on sockets that name TCP as their protocol, which these do not: every
    # body behind its headers, and every token of a stream, would wait up to 40 ms for the caller's delayed ACK.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _path(folder: str) -> Path | None:
    return Path(folder) if folder else None


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _write(path: Path, content: dict[str, Any]) -> None:
    """In one piece, so that whoever waits for the file never reads half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(orjson.dumps(content))
    draft.replace(path)


def _announce(
    models: list[ModelInfo], failed: dict[str, str], http_url: str, grpc_url: str, *, has_users: bool
) -> None:
    width = max(map(len, [*(info.id for info in models), *failed]))
    key = ', api_key="pw_…"' if has_users else ""
    bearer = " -H 'authorization: Bearer pw_…'" if has_users else ""
    model = f', model="{models[0].id}"' if len(models) > 1 else ""
    option = f" --model {models[0].id}" if len(models) > 1 else ""
    chat = {"model": models[0].id, "messages": [{"role": "user", "content": "Hello"}]}
    lines = [
        f"probewire {VERSION} is ready",
        "",
        *(f"  {info.id:<{width}}  {info.backend} on {info.device}, {info.dtype}, {_size(info)}" for info in models),
        *(f"  {name:<{width}}  COULD NOT BE LOADED: {reason}" for name, reason in failed.items()),
        "",
        f"  REST and OpenAI  {http_url}  (documentation: {http_url}/docs)",
        f"  gRPC             {grpc_url}",
        "",
        "Try, in another terminal:",
        f"  probewire chat --url {http_url}{option}",
        f"  curl {http_url}/v1/chat/completions{bearer} -H 'content-type: application/json' -d '{orjson.dumps(chat).decode()}'",
        "or, in Python:",
        "  from probewire.clients import Client",
        f'  print(Client("{grpc_url}"{key}).generate("The capital of France is"{model}))',
    ]
    print("\n".join(lines), flush=True)


def _size(info: ModelInfo) -> str:
    weights = f"{info.quantization.partition(';')[0]}, " if info.quantization else ""
    return (
        f"{weights}{info.n_layers} layers, d_model {info.d_model}, {info.n_slots} slots, context {info.context_length}"
    )
