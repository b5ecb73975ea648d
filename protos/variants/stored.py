"""Variants on the server: how one is loaded onto a model, what is said of it, and how its files are read back."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidArgument
from .files import FILES
from .manifest import checked_name

__all__ = ["LoadVariantRequest", "StoredFile", "VariantFile", "VariantInfo", "VariantPart", "VariantPartRequest"]

MAX_SOURCE = 1000
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True, slots=True)
class VariantFile:
    """A file of a variant's folder, sent along: exactly one of data and upload."""

    name: str
    """variant.json, adapter_model.safetensors, …"""
    data: bytes = b""
    upload: str = ""
    """SHA-256 of the file, which was sent in parts before."""

    def __post_init__(self) -> None:
        if self.name not in FILES:
            raise InvalidArgument(f"a variant has no file {self.name[:80]!r}; it has {', '.join(FILES)}")
        if bool(self.data) == bool(self.upload):
            raise InvalidArgument(
                f"{self.name}: give exactly one of data and upload (its SHA-256, once it was sent in parts)"
            )
        if self.upload and (len(self.upload) != 64 or not _HEX.issuperset(self.upload)):
            raise InvalidArgument(f"{self.name}: upload is a SHA-256 in 64 small hex digits, got {self.upload[:80]!r}")


@dataclass(frozen=True, slots=True)
class LoadVariantRequest:
    """Load a variant onto a model: exactly one of source and files."""

    name: str = ""
    """Empty: as its manifest says, or the source's last part. Other content under a name that you have is its next version."""
    model: str = ""
    """Empty: the only model loaded."""
    source: str = ""
    """A folder on the server, or `repo[@revision][/path]` on the Hugging Face hub."""
    files: tuple[VariantFile, ...] = ()
    shared: bool = False
    """Every user of the server may use it; else its owner alone."""
    rebase: bool = False
    """Load it though it was made for another model, where all shapes fit."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", tuple(self.files))
        if self.name:
            checked_name(self.name)
        if len(self.source) > MAX_SOURCE or not self.source.isprintable():
            raise InvalidArgument(f"a source has at most {MAX_SOURCE} printable characters, got {self.source[:80]!r}…")
        if bool(self.source) == bool(self.files):
            raise InvalidArgument("give exactly one of source (a folder or hub path on the server) and files")
        names = [file.name for file in self.files]
        if len(set(names)) != len(names):
            raise InvalidArgument(f"the files {names} name one twice")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a variant as the server keeps it."""

    name: str
    n_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class VariantInfo:
    """A loaded variant, one version of it."""

    name: str
    version: int
    """Counted from 1, for its owner, model and name; never given twice."""
    hash: str
    """SHA-256 of its content, base included."""
    model: str
    model_hash: str
    owner: str = ""
    shared: bool = False
    method: str = ""
    description: str = ""
    weights: tuple[str, ...] = ()
    """Where it has deltas."""
    max_rank: int = 0
    n_hooks: int = 0
    n_bytes: int = 0
    """Of its files."""
    source: str = ""
    created_s: float = 0.0
    """Unix time."""
    files: tuple[StoredFile, ...] = ()


@dataclass(frozen=True, slots=True)
class VariantPartRequest:
    """A part of a file of a loaded variant."""

    name: str
    """As requests name it: name, name@version, owner/name, sha256:<hex>."""
    file: str
    model: str = ""
    offset: int = 0

    def __post_init__(self) -> None:
        if self.offset < 0:
            raise InvalidArgument(f"offset must be 0 or more, got {self.offset}")


@dataclass(frozen=True, slots=True)
class VariantPart:
    """Bytes of a file, from where they were asked for: as many as one answer holds."""

    n_bytes: int
    """Of the whole file."""
    offset: int
    data: bytes = b""
