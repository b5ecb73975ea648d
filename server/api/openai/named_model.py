"""`model: "base:variant"`: how an unmodified client of OpenAI's names the variants that it wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ....protos.errors import NotFound
from ....protos.model import GenerateRequest
from ....protos.variants.stored import VariantInfo
from ....protos.variants.use import VariantUse
from ...service import Operations, answer

__all__ = ["base_and_variants", "variant_models", "with_variants"]

SEPARATOR, STACK = ":", "+"


async def with_variants(operations: Operations, asked: GenerateRequest) -> GenerateRequest:
    """The request with its model's own id, and the variants that its name has before those that it names itself."""
    base, uses = await base_and_variants(operations, asked.model)
    return replace(asked, model=base, variants=(*uses, *asked.variants))


async def base_and_variants(operations: Operations, named: str) -> tuple[str, tuple[VariantUse, ...]]:
    """(the model's own id, the variants behind the last colon of the name).

    An id that is loaded under exactly that name wins. Raises NotFound for a base that is not loaded, InvalidArgument for what
    names no variant.
    """
    base, colon, part = named.rpartition(SEPARATOR)
    if not colon:
        return named, ()
    ids = [info.id for info in await answer(operations, "models")]
    if named in ids:
        return named, ()
    if base and base not in ids:
        raise NotFound(
            f"no model {named!r} is loaded; loaded: {', '.join(ids) or 'none'} (and behind a colon its variants)"
        )
    return base, tuple(VariantUse(name) for name in part.split(STACK))


def variant_models(found: Sequence[VariantInfo], user: str) -> list[tuple[str, VariantInfo]]:
    """Each variant that a user sees, in its latest version, as the model that it makes of its base: its id, and the variant."""
    latest: dict[str, VariantInfo] = {}
    for one in found:
        name = one.name if one.owner == user else f"{one.owner}/{one.name}"
        key = f"{one.model}{SEPARATOR}{name}"
        if key not in latest or latest[key].version < one.version:
            latest[key] = one
    return list(latest.items())
