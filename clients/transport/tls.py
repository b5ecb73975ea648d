"""What a client brings to an encrypted connection: the CA that it trusts, and its own certificate if the server asks."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from ...protos.errors import InvalidArgument

__all__ = ["Tls", "read_tls"]


@dataclass(frozen=True, slots=True)
class Tls:
    """The contents of the PEM files, found to be usable."""

    context: ssl.SSLContext
    """For HTTP."""
    ca: bytes | None = None
    """The only certificates trusted; None: those that are trusted by default."""
    cert: bytes | None = None
    key: bytes | None = None


def read_tls(
    ca_file: str | Path | None = None, cert_file: str | Path | None = None, key_file: str | Path | None = None
) -> Tls | None:
    """The files' contents; None where none is given. Raises InvalidArgument for files that cannot be used.

    They are checked here, because gRPC says nothing of a file that it cannot use but that nobody answers.
    """
    if not (ca_file or cert_file or key_file):
        return None
    if (cert_file is None) != (key_file is None):
        raise InvalidArgument("a client's certificate is cert_file and key_file together; give both, or neither")
    return Tls(_context(ca_file, cert_file, key_file), _read(ca_file), _read(cert_file), _read(key_file))


def _context(ca_file: str | Path | None, cert_file: str | Path | None, key_file: str | Path | None) -> ssl.SSLContext:
    for name, path in (("ca_file", ca_file), ("cert_file", cert_file), ("key_file", key_file)):
        try:
            _read(path)
        except OSError as error:
            raise InvalidArgument(f"cannot read {name} {str(path)!r}: {error.strerror or error}") from None
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as error:
        raise InvalidArgument(
            f"ca_file {str(ca_file)!r} holds no certificates ({error.reason}); it must be PEM"
        ) from None
    if cert_file is not None:
        try:
            context.load_cert_chain(cert_file, key_file, password="")  # else OpenSSL asks on the terminal
        except (ssl.SSLError, ValueError) as error:
            reason = error.reason if isinstance(error, ssl.SSLError) else error
            raise InvalidArgument(
                f"cert_file {str(cert_file)!r} and key_file {str(key_file)!r} cannot be used ({reason}); "
                "both must be PEM, the key of that certificate and without a password"
            ) from None
    return context


def _read(path: str | Path | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
