"""The small files of a checkpoint folder that a converted one keeps: tokenizer, templates, generation config, licence."""

from __future__ import annotations

import shutil
from pathlib import Path

from ....protos.errors import InvalidArgument
from ..folder import check_tokenizer
from .kind import ADAPTER_CONFIG
from .record import RECORD

__all__ = ["copy_texts", "has_tokenizer", "texts_of"]

_PATTERNS = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*")
_WRITTEN_ANEW = ("config.json", "quantize_config.json", ADAPTER_CONFIG, RECORD)


def texts_of(folder: Path) -> list[Path]:
    """Those of one folder."""
    found = {file for pattern in _PATTERNS for file in folder.glob(pattern) if file.is_file()}
    return sorted(file for file in found if file.name not in _WRITTEN_ANEW and not file.name.endswith(".index.json"))


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a whole tokenizer."""
    try:
        check_tokenizer(folder)
    except InvalidArgument:
        return False
    return True


def copy_texts(folder: Path, out: Path) -> None:
    """Copy them; what is there already stays."""
    for file in texts_of(folder):
        if not (out / file.name).exists():
            shutil.copyfile(file, out / file.name)
