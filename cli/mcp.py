"""`probewire mcp`: a Model Context Protocol server before a box, for agents."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..clients import AsyncClient
from ..protos.errors import FailedPrecondition, InvalidArgument, ProbewireError
from .connection import add_connection_arguments, key_of
from .version import VERSION

if TYPE_CHECKING:
    from ..agents.boxes import Boxes

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what `probewire mcp` takes."""
    parser.add_argument(
        "--http",
        metavar="HOST:PORT",
        help="streamable HTTP at /mcp, entered with the callers' own keys of the box; left out: stdio, with your key",
    )
    parser.add_argument(
        "--may-change",
        action="store_true",
        help="offer the tools too that load and unload SAEs and variants; the box allows them by the key's role",
    )
    parser.add_argument("--tls-cert", type=Path, metavar="PEM", help="with --http: the certificate")
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="with --http: its private key")
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="with --http beyond this machine: without TLS, or before a box without keys",
    )
    add_connection_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until the end of input, or until stopped."""
    try:
        from ..agents.boxes import Boxes
    except ModuleNotFoundError as error:
        raise FailedPrecondition(
            f"probewire mcp needs {error.name}, which is not installed; pip install 'probewire[agents]'"
        ) from None

    def connect(key: str | None) -> AsyncClient:
        return AsyncClient(
            args.url,
            api_key=key,
            ca_file=args.ca_file,
            cert_file=args.cert_file,
            key_file=args.key_file,
            timeout_s=300.0,
        )

    asyncio.run(
        _stdio(Boxes(connect, own_key=key_of(args)), args) if args.http is None else _http(Boxes(connect), args)
    )
    return 0


async def _stdio(boxes: Boxes, args: argparse.Namespace) -> None:
    from ..agents.server import make_server

    try:
        await make_server(boxes, version=VERSION, may_change=args.may_change).run_stdio_async()
    finally:
        await boxes.close()


async def _http(boxes: Boxes, args: argparse.Namespace) -> None:
    import uvicorn

    from ..agents.server import http_app, make_server

    host, port = _address(args.http)
    if not args.insecure and not _own(host):
        await _check_open(boxes, args)
    server = make_server(boxes, version=VERSION, may_change=args.may_change)
    tls: dict[str, Any] = {} if args.tls_cert is None else {"ssl_certfile": args.tls_cert, "ssl_keyfile": args.tls_key}
    app: Any = http_app(server, boxes, host=host)
    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning", server_header=False, proxy_headers=False, **tls
    )
    try:
        await uvicorn.Server(config).serve()
    finally:
        await boxes.close()


async def _check_open(boxes: Boxes, args: argparse.Namespace) -> None:
    """Beyond this machine keys are asked for, and nobody reads them on the way."""
    if args.tls_cert is None:
        raise FailedPrecondition(
            "keys would cross the network in the clear; give --tls-cert and --tls-key, listen on 127.0.0.1, or say --insecure"
        )
    try:
        await (await boxes.of(None)).models()
    except ProbewireError:
        return
    raise FailedPrecondition(
        "the box asks nobody for a key, and would be open to the network; make users (probewire users add), or say --insecure"
    )


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InvalidArgument(f"--http takes HOST:PORT, as in 127.0.0.1:8765, got {text!r}")
    return host.strip("[]"), int(port)


def _own(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
