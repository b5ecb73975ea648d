"""Sparse autoencoders on the server: how one is loaded onto a site of a model, and what is said of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .errors import InvalidArgument

__all__ = ["LoadSaeRequest", "SaeFiles", "SaeInfo", "SaePart", "SaeReceived"]

MAX_NAME = 200
MAX_SOURCE = 1000
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class SaeFiles:
    """An SAE sent along, in the sae-lens on-disk format: exactly one of weights and upload."""

    config: str
    """The text of cfg.json."""
    weights: bytes = b""
    """The bytes of sae_weights.safetensors."""
    upload: str = ""
    """The SHA-256 of sae_weights.safetensors, which was sent in parts before."""

    def __post_init__(self) -> None:
        if bool(self.weights) == bool(self.upload):
            raise InvalidArgument(
                "give exactly one of weights (the bytes of sae_weights.safetensors) and upload (their SHA-256, once they "
                "were sent in parts)"
            )
        if self.upload:
            _check_sha256(self.upload)


@dataclass(frozen=True, slots=True)
class SaePart:
    """A part of an SAE's weights, for files beyond what one request may hold."""

    upload: str
    """SHA-256 of the whole file, in hex."""
    n_bytes: int
    """Of the whole file."""
    offset: int = 0
    """Where the part begins."""
    data: bytes = b""
    """Empty: only ask how much is there."""

    def __post_init__(self) -> None:
        _check_sha256(self.upload)
        end = self.offset + len(self.data)
        if self.offset < 0 or self.n_bytes < 1 or end > self.n_bytes:
            raise InvalidArgument(f"bytes {self.offset:,} … {end:,} are not of a file of {self.n_bytes:,} bytes")


@dataclass(frozen=True, slots=True)
class SaeReceived:
    """What a server has of an SAE's weights."""

    n_bytes: int
    """How many of the file's first bytes: where to go on."""


@dataclass(frozen=True, slots=True)
class LoadSaeRequest:
    """Load an SAE in the sae-lens on-disk format onto a site of a model: exactly one of source and files."""

    name: str = ""
    """What hooks call it; empty: the source's last part."""
    model: str = ""
    """Empty: the only model loaded."""
    source: str = ""
    """A folder on the server, or `repo[@revision]/path` on the Hugging Face hub."""
    files: SaeFiles | None = None
    site: str = ""
    """Such as resid_post.15; empty: as the SAE's own config says."""
    dtype: str = "auto"
    """In which it encodes and decodes: float32, bfloat16, float16, float64; auto: as its config says."""
    shared: bool = False
    """Every user of the server may use it; else its owner alone."""

    def __post_init__(self) -> None:
        if len(self.name) > MAX_NAME or not self.name.isprintable():
            raise InvalidArgument(f"an SAE's name has at most {MAX_NAME} printable characters, got {self.name[:220]!r}")
        if len(self.source) > MAX_SOURCE or not self.source.isprintable():
            raise InvalidArgument(f"a source has at most {MAX_SOURCE} printable characters, got {self.source[:80]!r}…")
        if bool(self.source) == (self.files is not None):
            raise InvalidArgument("give exactly one of source (a folder or hub path on the server) and files")
        if self.files is not None and not self.name:
            raise InvalidArgument("an SAE that is sent along needs a name")


@dataclass(frozen=True, slots=True)
class SaeInfo:
    """A loaded SAE."""

    name: str
    model: str
    site: str
    architecture: str
    """standard, topk, jumprelu or gated."""
    d_in: int
    d_sae: int
    """How many latents it has."""
    k: int
    """topk: how many fire at most; else 0."""
    dtype: str
    hash: str
    """SHA-256 of its weights as saved."""
    shared: bool = False
    owner: str = ""
    source: str = ""
    n_bytes: int = 0
    created_s: float = 0.0
    """Unix time."""
    own_site: str = ""
    """Where its config says that it was trained; empty where it says nothing that we know."""


def _check_sha256(upload: str) -> None:
    if not _SHA256.fullmatch(upload):
        raise InvalidArgument(f"upload must be a SHA-256 in 64 small hex digits, got {upload[:80]!r}")
