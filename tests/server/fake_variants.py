"""Variants of the pretended operations."""

from __future__ import annotations

from probewire.protos.saes import SaePart, SaeReceived
from probewire.protos.variants.stored import LoadVariantRequest, VariantInfo, VariantPart, VariantPartRequest
from tests.kept_variants import KeptVariants

__all__ = ["FakeVariants"]


class FakeVariants:
    """Loaded by whatever name, whatever is sent."""

    kept: KeptVariants

    async def load_variant(self, request: LoadVariantRequest) -> VariantInfo:
        return self.kept.load(request)

    async def send_variant(self, part: SaePart) -> SaeReceived:
        return self.kept.send(part)

    async def variants(self, model: str) -> list[VariantInfo]:
        return list(self.kept.kept.values())

    async def variant(self, name: str, model: str) -> VariantInfo:
        return self.kept.get(name)

    async def variant_part(self, request: VariantPartRequest) -> VariantPart:
        return self.kept.part(request)

    async def unload_variant(self, name: str, model: str) -> None:
        self.kept.unload(name)
