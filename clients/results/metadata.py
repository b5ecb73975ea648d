"""What our safetensors files say of themselves, before any of their tensors is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors

from ...protos.errors import InvalidArgument, NotFound

__all__ = ["metadata_of"]

_safetensors: Any = safetensors  # not annotated


def metadata_of(path: Path, format: str, writer: str) -> dict[str, str]:  # noqa: A002 - the file's word for it
    """The metadata of a file of a `format`. Raises NotFound without a file, InvalidArgument for one that `writer` did not write."""
    if not path.exists():
        raise NotFound(f"no file {path}")
    try:
        with _safetensors.safe_open(path, "np") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise InvalidArgument(f"{path} is not a safetensors file: {error}") from None
    if metadata.get("format") != format:
        raise InvalidArgument(
            f"{path} was not written by {writer}: its format is {metadata.get('format')!r}, not {format!r}"
        )
    return metadata
