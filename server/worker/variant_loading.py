"""A request to load a variant, carried out in the worker: found, read, held against the model, kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from ...backends.checkpoints.hub import hub_files
from ...protos.errors import InvalidArgument, NotFound, ProbewireError
from ...protos.model import ModelInfo
from ...protos.variants.files import FILES, folder_files
from ...protos.variants.manifest import checked_name
from ...protos.variants.stored import LoadVariantRequest, VariantInfo
from ...protos.variants.variant import Variant
from ..auth.users import User
from ..state.folders import allowed_folder
from ..state.variants import VariantStore

__all__ = ["load_variant"]


def load_variant(
    request: LoadVariantRequest,
    user: User,
    info: ModelInfo,
    store: VariantStore,
    folders: tuple[str, ...],
    fits: Callable[[Variant], object],
) -> VariantInfo:
    """Load a variant onto this model. Raises with the reason when it does not fit; then nothing is kept.

    `fits` raises for a weight or module that this model does not take deltas at.
    """
    if request.files:
        files = {file.name: file.data or store.sent(user, file.upload) for file in request.files}
        where = f"the variant {request.name!r}" if request.name else "the variant"
    else:
        files, where = _found(request.source, user, store, folders), request.source
    store.check_size(sum(map(len, files.values())))
    variant = Variant.of_files(files, where).bound(info, rebase=request.rebase)
    fits(variant)
    name = request.name or variant.manifest.name or PurePosixPath(request.source.rstrip("/")).name
    if not name:
        raise InvalidArgument("the variant has no name: give one")
    uploads = [file.upload for file in request.files if file.upload]
    told = request.source or "sent along"
    item = store.put(user, variant.named(checked_name(name)), info, shared=request.shared, told=told, uploads=uploads)
    for upload in uploads:
        store.uploads.forget(user, upload)
    return item


def _found(source: str, user: User, store: VariantStore, folders: tuple[str, ...]) -> dict[str, bytes]:
    folder = allowed_folder(source, user, folders, "variant")
    if folder is None:
        folder = _from_hub(source)
    if not folder.is_dir():
        raise NotFound(f"there is no folder {source!r} on the server; send the variant along instead")
    store.check_size(sum(path.stat().st_size for path in folder.iterdir() if path.name in FILES))
    return folder_files(folder)


def _from_hub(source: str) -> Path:
    parts = source.strip("/").split("/")
    if len(parts) < 2 or not all(parts):
        raise InvalidArgument(
            f"{source!r} is neither a folder on the server nor owner/repo[@revision][/path] on the hub"
        )
    name, _, revision = parts[1].partition("@")
    path = "/".join(parts[2:])
    inside = f"{path}/" if path else ""
    try:
        snapshot = hub_files(f"{parts[0]}/{name}", revision or None, tuple(f"{inside}{file}" for file in FILES))
    except ProbewireError as error:
        raise type(error)(f"the server has no folder {source!r}, and from the hub: {error.message}") from None
    return snapshot / path if path else snapshot
