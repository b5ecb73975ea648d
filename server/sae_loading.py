"""A request to load an SAE, carried out in the worker: found, read, checked against the model, kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

from ..backends.checkpoints.hub import hub_files
from ..backends.saes import SaeSource, read_folder, source_of_files
from ..backends.saes.files import CONFIG_FILE, WEIGHTS_FILE
from ..protos.errors import InvalidArgument
from ..protos.model import ModelInfo
from ..protos.saes import MAX_NAME, LoadSaeRequest, SaeInfo
from .sae_store import SaeStore, allowed_folder
from .users import User

__all__ = ["load_sae"]


def load_sae(
    request: LoadSaeRequest, user: User, info: ModelInfo, store: SaeStore, folders: tuple[str, ...]
) -> SaeInfo:
    """Load an SAE onto a site. Raises with the reason when it cannot act there exactly; then nothing is kept."""
    source = _source(request, user, store, folders)
    name = request.name or PurePosixPath(request.source.rstrip("/")).name
    if not name or len(name) > MAX_NAME:
        raise InvalidArgument(
            f"the source {request.source!r} names nothing; give the SAE a name of up to {MAX_NAME} letters"
        )
    sae = source.load(name, request.site, request.dtype, info)
    if sae.n_bytes > store.max_bytes:
        raise InvalidArgument(f"the SAE takes {sae.n_bytes:,} bytes in {sae.dtype}; at most {store.max_bytes:,} fit")
    item = store.put(user, source, sae, info, shared=request.shared, told=request.source or "sent along")
    if request.files is not None and request.files.upload:
        store.uploads.forget(user, request.files.upload)
    return item


def _source(request: LoadSaeRequest, user: User, store: SaeStore, folders: tuple[str, ...]) -> SaeSource:
    if request.files is not None:
        weights = request.files.weights or store.uploads.read(user, request.files.upload)
        found = source_of_files(request.files.config.encode(), weights, f"SAE {request.name!r}")
        store.check_size(len(weights))
        return found
    folder = allowed_folder(request.source, user, folders)
    if folder is None:
        repo, revision, path = _hub_parts(request.source)
        inside = f"{path}/" if path else ""
        snapshot = hub_files(repo, revision, (f"{inside}{CONFIG_FILE}", f"{inside}{WEIGHTS_FILE}"))
        folder = snapshot / path if path else snapshot
    return replace(read_folder(folder, store.max_bytes), what=f"the SAE {request.source}")


def _hub_parts(source: str) -> tuple[str, str | None, str]:
    """owner/repo[@revision]/path/in/it."""
    parts = source.strip("/").split("/")
    if len(parts) < 2 or not all(parts):
        raise InvalidArgument(f"{source!r} is neither a folder on the server nor owner/repo[@revision]/path on the hub")
    name, _, revision = parts[1].partition("@")
    return f"{parts[0]}/{name}", revision or None, "/".join(parts[2:])
