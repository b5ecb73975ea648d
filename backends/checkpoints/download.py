"""One file from a URL: resumed where it was cut off, checked against its hash, and put in place in one rename."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx

from ...protos.errors import FailedPrecondition, Unavailable
from .progress import Progress, Report

__all__ = ["download", "sha256_of"]

_CHUNK_BYTES = 1 << 18
_MAX_TRIES = 5
"""Connections in a row that brought no new byte."""


@dataclass(frozen=True, slots=True)
class _Source:
    start: int
    """Byte of the file at which the chunks begin."""
    total: int | None
    chunks: Iterator[bytes]


def download(
    url: str, target: Path, *, sha256: str, report: Report, cafile: Path | None = None, retry_pause_s: float = 1.0
) -> None:
    """Put what `url` (http, https or file) holds at `target`.

    Bytes of an earlier attempt lie in `<target>.part` and are kept, unless the whole turns out to have another hash.
    Raises Unavailable (the next call resumes) and FailedPrecondition (the file is not the one expected).
    """
    part = target.with_name(target.name + ".part")
    found = ""
    while True:
        resumed = part.exists()
        _fill(url, part, report, cafile, retry_pause_s)
        found = sha256_of(part, report)
        if found == sha256:
            part.replace(target)
            return
        part.unlink()
        if not resumed:
            break
    raise FailedPrecondition(
        f"{_shown(url)} has sha256 {found}, but {target.name} must have {sha256}; "
        "the package index holds another file under this name: check pip's index settings (`pip config list`)"
    )


def sha256_of(path: Path, report: Report) -> str:
    """Hash of a file's contents, in hexadecimal."""
    digest = hashlib.sha256()
    done, total = 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
            done += len(chunk)
            report(Progress("verify", done, total))
    return digest.hexdigest()


def _fill(url: str, part: Path, report: Report, cafile: Path | None, retry_pause_s: float) -> None:
    """Bring `part` to its full length."""
    tries = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            with _open(url, before, cafile) as source:
                _append(source, part, report)
            return
        except (httpx.TransportError, _ServerError) as error:
            gained = part.exists() and part.stat().st_size > before
            tries = 1 if gained else tries + 1
            if tries >= _MAX_TRIES:
                raise Unavailable(
                    f"{_shown(url)} cannot be fetched: {error}; what came is kept, so the next attempt resumes"
                ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(f"{_shown(url)} cannot be fetched: {error}") from error
        time.sleep(retry_pause_s)


def _append(source: _Source, part: Path, report: Report) -> None:
    done = source.start
    with part.open("r+b" if part.exists() else "wb") as file:
        file.seek(source.start)
        file.truncate()
        for chunk in source.chunks:
            file.write(chunk)
            done += len(chunk)
            report(Progress("download", done, source.total))


@contextmanager
def _open(url: str, start: int, cafile: Path | None) -> Generator[_Source]:
    if urlsplit(url).scheme == "file":
        with _open_file(url, start) as source:
            yield source
    else:
        with _open_http(url, start, cafile) as source:
            yield source


@contextmanager
def _open_file(url: str, start: int) -> Generator[_Source]:
    path = Path(url2pathname(urlsplit(url).path))
    try:
        file = path.open("rb")
    except OSError as error:
        raise Unavailable(
            f"{path} cannot be read: {error.strerror}; check pip's find-links and index settings"
        ) from error
    with file:
        total = path.stat().st_size
        start = file.seek(min(start, total))
        yield _Source(start, total, iter(lambda: file.read(_CHUNK_BYTES), b""))


@contextmanager
def _open_http(url: str, start: int, cafile: Path | None) -> Generator[_Source]:
    context = httpx.create_ssl_context()
    if cafile is not None:
        try:
            context.load_verify_locations(cafile)
        except OSError as error:
            raise Unavailable(
                f"{cafile}, which pip is set to (`pip config get global.cert`), holds no certificates"
            ) from error
    # Compressed in transit, the bytes received would not be those that Range counts.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with (
        httpx.Client(verify=context, follow_redirects=True, timeout=30.0) as client,
        client.stream("GET", url, headers=headers) as response,
    ):
        yield _source(response, start)


def _source(response: httpx.Response, start: int) -> _Source:
    code = response.status_code
    if code == 416 and start:
        # Nothing is left to send: the part is whole, or longer than the file. The hash tells which.
        return _Source(start, start, iter(()))
    if code >= 500 or code == 429:
        raise _ServerError(f"the server answers {code} {response.reason_phrase}")
    if not response.is_success:
        raise Unavailable(f"{_shown(str(response.url))} cannot be fetched: {code} {response.reason_phrase}")
    if code != 206:
        start = 0
    elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
        raise Unavailable(f"{_shown(str(response.url))} answers with another range than asked for (from byte {start})")
    length = response.headers.get("Content-Length")
    total = start + int(length) if length is not None else None
    return _Source(start, total, response.iter_raw())


class _ServerError(Exception):
    """The server may do better in a moment."""


def _shown(url: str) -> str:
    """The URL without the name, password and query it may carry."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}{parts.path}"
