"""SAEs of the pretended operations."""

from __future__ import annotations

from probewire.protos.errors import NotFound
from probewire.protos.saes import LoadSaeRequest, SaeInfo, SaePart, SaeReceived

__all__ = ["FakeSaes"]


class FakeSaes:
    """Loaded by whatever name, whatever is sent."""

    loaded_saes: dict[str, SaeInfo]

    async def load_sae(self, request: LoadSaeRequest) -> SaeInfo:
        name, site = request.name or "sae", request.site or "resid_post.1"
        self.loaded_saes[name] = SaeInfo(name, "fake/model", site, "topk", 8, 32, 4, "float32", "00")
        return self.loaded_saes[name]

    async def send_sae(self, part: SaePart) -> SaeReceived:
        return SaeReceived(part.offset + len(part.data))

    async def saes(self, model: str) -> list[SaeInfo]:
        return list(self.loaded_saes.values())

    async def unload_sae(self, name: str, model: str) -> None:
        if name not in self.loaded_saes:
            raise NotFound(f"no SAE {name!r}")
        del self.loaded_saes[name]
