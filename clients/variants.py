"""Variants on the server: loaded from a value or a folder, listed, fetched, forgotten."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

from ..protos.errors import InvalidArgument, NotFound
from ..protos.service import Service
from ..protos.variants.files import with_card, write_folder
from ..protos.variants.limits import check_limits
from ..protos.variants.manifest import checked_name
from ..protos.variants.stored import LoadVariantRequest, StoredFile, VariantFile, VariantInfo, VariantPartRequest
from ..protos.variants.variant import Variant
from . import sending
from .progress import progress_bar
from .requests.steps import Caller, Steps, ask, asking

__all__ = ["fetch_variant", "load_variant", "unload_variant", "variant", "variants"]

variants = asking(Service.variants)
variant = asking(Service.variant)
unload_variant = asking(Service.unload_variant)


def load_variant(
    client: Caller,
    source: Variant | str | Path,
    *,
    name: str = "",
    shared: bool = False,
    rebase: bool = False,
    upload: bool | None = None,
    model: str = "",
    progress: bool = True,
) -> Steps[VariantInfo]:
    """Load a variant onto a model, for requests to name. What has been loaded under this name already is not sent again.

    `source`: a Variant, a folder of ours, of PEFT or of mlx-lm on this machine, or a folder or hub id that the server reads
    (`upload` says which where both could be meant). `name`: left out, as the manifest or the folder says; other content under
    a name of yours is its next version. `shared`: all users may use it. `rebase`: though it was made for another model.
    """
    if not isinstance(source, Variant):
        folder = Path(source).expanduser()
        if not (folder.is_dir() if upload is None else upload):
            return (
                yield from ask(Service.load_variant, LoadVariantRequest(name, model, str(source), (), shared, rebase))
            )
        source, name = Variant.load(folder), name or folder.resolve().name
    return (yield from _sent(source, name, shared, rebase, model, progress))


def _sent(found: Variant, name: str, shared: bool, rebase: bool, model: str, progress: bool) -> Steps[VariantInfo]:
    """Bound to the model here, so that what is wrong is told before anything is sent, and the hash is the server's."""
    info = yield from ask(Service.describe, model)
    bound = found.bound(info, rebase=rebase)
    check_limits(bound)
    if not (name or bound.manifest.name):
        raise InvalidArgument("the variant has no name: give one (name=…)")
    bound = bound.named(checked_name(name or bound.manifest.name))
    try:
        there = yield from ask(Service.variant, bound.manifest.name, model)
        if (there.hash, there.shared) == (bound.hash, shared):
            return there
    except NotFound:
        pass
    files = yield from _files(bound.files(), bound.manifest.name, progress)
    return (
        yield from ask(Service.load_variant, LoadVariantRequest(bound.manifest.name, model, "", files, shared, rebase))
    )


def _files(files: Mapping[str, bytes], name: str, progress: bool) -> Steps[tuple[VariantFile, ...]]:
    """As a request takes them: small ones in it, large ones sent ahead."""
    told: list[VariantFile] = []
    left = sending.PART_BYTES
    for file, data in sorted(files.items(), key=lambda item: len(item[1])):
        if len(data) <= left:
            told.append(VariantFile(file, data))
            left -= len(data)
            continue
        with progress_bar(f"sending {name}", "bytes", show=progress) as bar:
            told.append(
                VariantFile(file, upload=(yield from sending.send(io.BytesIO(data), file, Service.send_variant, bar)))
            )
    return tuple(told)


def fetch_variant(
    client: Caller, name: str, folder: str | Path | None = None, *, model: str = "", progress: bool = True
) -> Steps[Variant]:
    """A variant that you may use, as a value; with `folder`, written there too. Raises NotFound, FailedPrecondition for a
    folder that holds anything.
    """
    info = yield from ask(Service.variant, name, model)
    exact = f"sha256:{info.hash}"  # its name may come to mean another while it is read
    files: dict[str, bytes] = {}
    with progress_bar(f"fetching {info.name}", "bytes", show=progress) as bar:
        for file in info.files:
            files[file.name] = yield from _read(exact, file, info.model)
            bar(sum(map(len, files.values())), info.n_bytes)
    found = Variant.of_files(files, f"variant {name!r}")
    if found.hash != info.hash:
        raise InvalidArgument(f"variant {name!r} came as {found.hash[:16]}… and is {info.hash[:16]}…; fetch it again")
    if folder is not None:
        card = (found.deltas, found.plan, found.manifest, found.hash)
        write_folder(Path(folder).expanduser(), with_card(files, *card))
    return found


def _read(name: str, file: StoredFile, model: str) -> Steps[bytes]:
    data = bytearray()
    while len(data) < file.n_bytes:
        part = yield from ask(Service.variant_part, VariantPartRequest(name, file.name, model, len(data)))
        if not part.data:
            raise NotFound(f"{file.name} of the variant ends after {len(data):,} of its {file.n_bytes:,} bytes")
        data += part.data
    return bytes(data)
