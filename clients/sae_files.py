"""An SAE's folder on this machine, to be sent along."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..protos.errors import InvalidArgument, ResourceExhausted, Unavailable
from ..protos.saes import SaeFiles, SaePart
from ..protos.service import Service
from .progress import progress_bar
from .requests.steps import Steps, ask
from .transport.base import Watch

__all__ = ["sae_files"]

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae_weights.safetensors"
PART_BYTES = 4 << 20
"""Of a request; weights beyond are sent in parts."""
LEAST_BYTES = 256 << 10
"""Of a part, for servers that take less."""
MAX_SETBACKS = 3
"""How often a server may have less than it was sent: it has lost it, or made room."""


def sae_files(folder: Path, *, progress: bool = True) -> Steps[SaeFiles]:
    """The two files that sae-lens writes, large weights sent ahead. Raises InvalidArgument when the folder has them not."""
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "is not there"
        raise InvalidArgument(
            f"{folder} {kind}; give the folder that sae-lens saved an SAE in ({CONFIG_FILE} and {WEIGHTS_FILE}); pickles "
            "(.pt) are never opened"
        )
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise InvalidArgument(
            f"{folder} has no {' and no '.join(missing)}; give a folder that sae-lens saved an SAE in"
        )
    weights = folder / WEIGHTS_FILE
    try:
        config = (folder / CONFIG_FILE).read_text(encoding="utf-8")
        if not weights.stat().st_size:
            raise InvalidArgument(f"{weights} is empty; save the SAE again")
        if weights.stat().st_size <= PART_BYTES:
            return SaeFiles(config, weights.read_bytes())
        with progress_bar(f"sending {folder.name}", "bytes", show=progress) as bar:
            return SaeFiles(config, upload=(yield from _send(weights, bar)))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"the SAE in {folder} cannot be read: {error}") from None


def _send(path: Path, watch: Watch) -> Steps[str]:
    """Send a file in parts, from where the server has it on; gives its SHA-256."""
    with path.open("rb") as file:
        upload, n_bytes = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
        there = (yield from ask(Service.send_sae, SaePart(upload, n_bytes))).n_bytes
        setbacks, size = 0, PART_BYTES
        while there < n_bytes:
            watch(there, n_bytes)
            file.seek(there)
            data = file.read(min(size, n_bytes - there))
            if not data:
                raise InvalidArgument(f"{path} changed while it was sent; send it again")
            try:
                now = (yield from ask(Service.send_sae, SaePart(upload, n_bytes, there, data))).n_bytes
            except ResourceExhausted:  # of one request, perhaps: a server may allow fewer bytes
                if size <= LEAST_BYTES:
                    raise
                size //= 2
                continue
            setbacks += now <= there
            if setbacks > MAX_SETBACKS:
                raise Unavailable(f"the server keeps {now:,} of {path.name}'s {n_bytes:,} bytes; send it again")
            there = now
    return upload
