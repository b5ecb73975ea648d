"""A request to load an SAE, carried out in the worker: found, read, checked against the model, kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

from ...backends.checkpoints.hub import hub_files
from ...backends.saes import SaeSource, read_folder, source_of_files
from ...backends.saes.files import CONFIG_FILE, WEIGHTS_FILE
from ...protos.errors import InvalidArgument, ProbewireError
from ...protos.model import ModelInfo
from ...protos.saes import MAX_NAME, LoadSaeRequest, SaeFiles, SaeInfo
from ..auth.users import User
from ..state.folders import allowed_folder
from ..state.saes import SaeStore

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
    sae = source.load(name, request.site, request.dtype, info, store.max_bytes)
    item = store.put(user, source, sae, info, shared=request.shared, told=request.source or "sent along")
    if request.files is not None and request.files.upload:
        store.uploads.forget(user, request.files.upload)
    return item


def _source(request: LoadSaeRequest, user: User, store: SaeStore, folders: tuple[str, ...]) -> SaeSource:
    if request.files is not None:
        return _sent_along(request.name, request.files, user, store)
    folder = allowed_folder(request.source, user, folders, "SAE")
    if folder is None:
        repo, revision, path = _hub_parts(request.source)
        inside = f"{path}/" if path else ""
        try:
            snapshot = hub_files(repo, revision, (f"{inside}{CONFIG_FILE}", f"{inside}{WEIGHTS_FILE}"))
        except ProbewireError as error:
            told = f"the server has no folder {request.source!r}, and from the hub: {error.message}"
            raise type(error)(told) from None
        folder = snapshot / path if path else snapshot
    return replace(read_folder(folder, store.max_bytes), what=f"the SAE {request.source}")


def _sent_along(name: str, files: SaeFiles, user: User, store: SaeStore) -> SaeSource:
    found = source_of_files(files.config.encode(), files.weights, f"SAE {name!r}")
    if not files.upload:
        store.check_size(len(files.weights))
        return found
    return replace(found, weights=store.sent(user, files.upload))


def _hub_parts(source: str) -> tuple[str, str | None, str]:
    """owner/repo[@revision]/path/in/it."""
    parts = source.strip("/").split("/")
    if len(parts) < 2 or not all(parts):
        raise InvalidArgument(f"{source!r} is neither a folder on the server nor owner/repo[@revision]/path on the hub")
    name, _, revision = parts[1].partition("@")
    return f"{parts[0]}/{name}", revision or None, "/".join(parts[2:])
