"""An SAE that analyses need twice: on the server, where latents are read and edited, and on the disk, for its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from ....clients import Client
from ....protos.errors import FailedPrecondition, InvalidArgument, NotFound
from ....protos.saes import SaeInfo
from .configs import import_sae_lens
from .loaded import LoadedSae, load

__all__ = ["opened"]


@contextmanager
def opened(
    client: Client, sae: str | Path, *, folder: str | Path | None = None, site: str = "", model: str = ""
) -> Generator[tuple[SaeInfo, LoadedSae]]:
    """The SAE as the server has it and as the disk has it.

    `sae`: the name of one that is loaded (`folder`: where its files lie here, when not where the server loaded it
    from), or a folder, which is loaded for as long as the context lasts (`site`: where, when its config does not say).
    Raises NotFound for neither, InvalidArgument where the files are not at hand, FailedPrecondition where they differ.
    """
    import_sae_lens()  # without the warnings of what it imports in turn
    known = {info.name: info for info in client.saes() if model in ("", info.model)}
    if isinstance(sae, str) and sae in known:
        info = known[sae]
        found = Path(folder or info.source)
        if not (found / "cfg.json").is_file():
            raise InvalidArgument(
                f"the files of SAE {sae!r}, which are needed here too, are not at {str(found)!r} on this machine; give their "
                "folder instead of the name, or as folder="
            )
        yield info, _same(info, load(found))
        return
    if not Path(sae).is_dir():
        raise NotFound(f"{str(sae)!r} is no loaded SAE ({', '.join(known) or 'none is'}) and no folder here")
    loaded = load(sae)
    name = f"{Path(sae).name}-{uuid4().hex[:8]}"
    try:
        info = client.load_sae(str(Path(sae).resolve()), site=site or loaded.site, name=name, model=model)
        yield info, loaded
    finally:
        with suppress(NotFound):
            client.unload_sae(name)


def _same(info: SaeInfo, loaded: LoadedSae) -> LoadedSae:
    own = hashlib.sha256((loaded.folder / "sae_weights.safetensors").read_bytes()).hexdigest()
    if own != info.hash:
        raise FailedPrecondition(
            f"{info.name} on the server has weights {info.hash[:12]} (d_sae {info.d_sae}); those in {loaded.folder} are "
            f"{own[:12]} (d_sae {loaded.d_sae}); give the folder that it was loaded from"
        )
    return loaded
