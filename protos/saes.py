"""Sparse autoencoders on the server: how one is loaded onto a site of a model, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import InvalidArgument

__all__ = ["LoadSaeRequest", "SaeFiles", "SaeInfo"]

MAX_NAME = 200
MAX_SOURCE = 1000


@dataclass(frozen=True, slots=True)
class SaeFiles:
    """An SAE sent along, in the sae-lens on-disk format."""

    config: str
    """The text of cfg.json."""
    weights: bytes
    """The bytes of sae_weights.safetensors."""


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
    """In which it encodes and decodes: float32, bfloat16, float16, float64; auto: as saved."""
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
