"""The options of every command that talks to a server, and the client that they make."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from pathlib import Path

from ..clients.client import DEFAULT_URL, Client
from ..protos.errors import InvalidArgument

__all__ = ["add_connection_arguments", "connected", "key_of"]

KEY_VARIABLE = "PROBEWIRE_API_KEY"


def add_connection_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where the server is and how to get in."""
    group = parser.add_argument_group("connection")
    group.add_argument(
        "--url",
        default=DEFAULT_URL,
        help="grpc://host:50051 or http://host:8000; grpcs://, https:// with TLS (%(default)s)",
    )
    keys = group.add_mutually_exclusive_group()
    keys.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"your key; better in the environment, as {KEY_VARIABLE}, where other users of this machine do not see it",
    )
    keys.add_argument("--api-key-file", type=Path, metavar="FILE", help="a file that holds your key")
    group.add_argument("--ca-file", type=Path, metavar="PEM", help="the CA to trust in place of the usual ones")
    group.add_argument("--cert-file", type=Path, metavar="PEM", help="your certificate, where the server asks for one")
    group.add_argument("--key-file", type=Path, metavar="PEM", help="its private key")


def connected(args: argparse.Namespace, *, timeout_s: float | None = 600.0) -> Client:
    """A client of what the options name. Warnings become lines on standard error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        client = Client(
            args.url,
            api_key=key_of(args),
            ca_file=args.ca_file,
            cert_file=args.cert_file,
            key_file=args.key_file,
            timeout_s=timeout_s,
        )
    for warning in caught:
        print(f"probewire: {warning.message}", file=sys.stderr)
    return client


def key_of(args: argparse.Namespace) -> str | None:
    """The key that the options or the environment name."""
    if args.api_key_file is None:
        return args.api_key or os.environ.get(KEY_VARIABLE) or None
    try:
        return args.api_key_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"cannot read the key in {str(args.api_key_file)!r}: {error}") from None
