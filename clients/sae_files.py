"""An SAE's folder on this machine, to be sent along."""

from __future__ import annotations

from pathlib import Path

from ..protos.errors import InvalidArgument
from ..protos.saes import SaeFiles
from ..protos.service import Service
from . import sending
from .progress import progress_bar
from .requests.steps import Steps

__all__ = ["sae_files"]

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae_weights.safetensors"


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
        if weights.stat().st_size <= sending.PART_BYTES:
            return SaeFiles(config, weights.read_bytes())
        with progress_bar(f"sending {folder.name}", "bytes", show=progress) as bar, weights.open("rb") as file:
            return SaeFiles(config, upload=(yield from sending.send(file, WEIGHTS_FILE, Service.send_sae, bar)))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"the SAE in {folder} cannot be read: {error}") from None
