"""An SAE's folder on this machine, to be sent along."""

from __future__ import annotations

from pathlib import Path

from ..protos.errors import InvalidArgument
from ..protos.saes import SaeFiles

__all__ = ["sae_files"]

CONFIG_FILE, WEIGHTS_FILE = "cfg.json", "sae_weights.safetensors"


def sae_files(folder: Path) -> SaeFiles:
    """The two files that sae-lens writes. Raises InvalidArgument when the folder has them not."""
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:
        raise InvalidArgument(
            f"{folder} has no {' and no '.join(missing)}; give a folder that sae-lens saved an SAE in"
        )
    try:
        return SaeFiles((folder / CONFIG_FILE).read_text(encoding="utf-8"), (folder / WEIGHTS_FILE).read_bytes())
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"the SAE in {folder} cannot be read: {error}") from None
