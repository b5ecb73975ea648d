"""A variant loaded for nobody else, for as long as it is looked at."""

from __future__ import annotations

import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress

from ...clients import Client
from ...protos.errors import NotFound
from ...protos.variants.variant import Variant
from .subject import Subject

__all__ = ["tried"]


@contextmanager
def tried(client: Client, variant: Variant, *, model: str = "") -> Generator[Subject]:
    """The model with the variant, privately, under a name that nobody knows; forgotten at the end, whatever happens."""
    name = f"tried-{variant.hash[:12]}-{uuid.uuid4().hex[:8]}"
    info = client.load_variant(variant, name=name, shared=False, model=model, progress=False)
    try:
        yield Subject.of(client, variant=f"{name}@{info.version}", model=model)
    finally:
        with suppress(NotFound):
            client.unload_variant(name, model)
