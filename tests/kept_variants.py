"""Variants of pretended services: kept in memory, by name, bytes and all."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from probewire.protos.errors import NotFound
from probewire.protos.saes import SaePart, SaeReceived
from probewire.protos.variants.stored import (
    LoadVariantRequest,
    StoredFile,
    VariantInfo,
    VariantPart,
    VariantPartRequest,
)
from probewire.protos.variants.variant import Variant

__all__ = ["KeptVariants"]


@dataclass
class KeptVariants:
    """One user's; a name has one version. Answers hold so few bytes that files come in several parts."""

    kept: dict[str, VariantInfo] = field(default_factory=dict)
    bytes_of: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """(hash, file) → its bytes."""
    requests: list[LoadVariantRequest] = field(default_factory=list)
    sent: dict[str, bytearray] = field(default_factory=dict)
    part_bytes: int = 700

    def load(self, request: LoadVariantRequest) -> VariantInfo:
        self.requests.append(request)
        files = {file.name: file.data or bytes(self.sent[file.upload]) for file in request.files}
        found = Variant.of_files(files, "it") if files else None
        name = request.name or request.source
        stored = tuple(StoredFile(file, len(data), hashlib.sha256(data).hexdigest()) for file, data in files.items())
        hash_ = found.hash if found else "00" * 32
        self.kept[name] = VariantInfo(name, 1, hash_, "fake/model", "hash", "ada", request.shared, files=stored)
        self.bytes_of |= {(hash_, file): data for file, data in files.items()}
        return self.kept[name]

    def send(self, part: SaePart) -> SaeReceived:
        there = self.sent.setdefault(part.upload, bytearray())
        if part.offset == len(there):
            there += part.data
        return SaeReceived(len(there))

    def get(self, name: str) -> VariantInfo:
        found = [item for item in self.kept.values() if name in (item.name, f"sha256:{item.hash}")]
        if not found:
            raise NotFound(f"no variant {name!r}")
        return found[0]

    def part(self, request: VariantPartRequest) -> VariantPart:
        data = self.bytes_of[self.get(request.name).hash, request.file]
        return VariantPart(len(data), request.offset, data[request.offset : request.offset + self.part_bytes])

    def unload(self, name: str) -> None:
        del self.kept[self.get(name).name]
