"""How a request names the variants that its inputs run with, and what an answer says of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from ..errors import InvalidArgument
from ..spec import Where

__all__ = ["MAX_USES", "UsedVariant", "VariantUse", "checked_uses"]

MAX_USES = 8
"""Variants of one input."""
MAX_SCALE = 1e6
_NAMED = re.compile(
    r"(?:(?!\.+/)[A-Za-z0-9._-]{1,200}/)?(?!\.+(?:@|$))[A-Za-z0-9._-]{1,64}(?:@[0-9]{1,9})?|sha256:[0-9a-f]{12,64}"
)


@dataclass(frozen=True, slots=True)
class VariantUse:
    """A variant as a request asks for it: by name (its latest version), name@version, owner/name, or sha256:<12+ hex>."""

    name: str
    scale: float = 1.0
    """Times its deltas and what its hooks change; 0 is the base, −1 the reverse."""
    where: Where = Where()
    """Token rows at which it acts: positions, spans, phase and token_ids. Default: all. With a condition (`when`, latched) the
    prompt decides, on the base, whether it acts at the tokens that follow."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAMED.fullmatch(self.name):  # pyright: ignore[reportUnnecessaryIsInstance] - what callers may send
            raise InvalidArgument(
                f"a variant is named by 1 to 64 letters, digits and . _ -, behind them @version where one is meant, before "
                f"them owner/ for another's; or by sha256: and 12 or more hex digits; got {str(self.name)[:80]!r}"
            )
        number = isinstance(self.scale, (int, float)) and not isinstance(self.scale, bool)  # pyright: ignore[reportUnnecessaryIsInstance] - what callers may send
        if not number or not math.isfinite(self.scale) or abs(self.scale) > MAX_SCALE:
            raise InvalidArgument(
                f"variant {self.name}: scale must be a number in ±{MAX_SCALE:,.0f}, got {self.scale!r}"
            )
        when = self.where.when
        if when is not None and not all(one.latched and one.site for one in when.parts):
            raise InvalidArgument(
                f"variant {self.name}: the conditions of a use (when) each name their site and latch ('last' or 'mean'): the prompt, "
                "which runs on the base, decides for the tokens that follow; conditions of single rows belong to hooks of the "
                "variant's plan"
            )

    @classmethod
    def short(cls, text: str) -> VariantUse:
        """As JSON may write one that has a name alone."""
        return cls(text)


@dataclass(frozen=True, slots=True)
class UsedVariant:
    """A variant that inputs of a request run with: which content the name stood for."""

    name: str
    version: int
    hash: str
    """SHA-256 of its content, base included: a name may change hands."""
    owner: str
    scale: float
    inputs: tuple[str, ...]


def checked_uses(given: Iterable[VariantUse | str] | VariantUse | str, what: str) -> tuple[VariantUse, ...]:
    """As a tuple of uses; names alone are taken too. Raises InvalidArgument for too many, and for what is neither."""
    listed = ((given,) if given else ()) if isinstance(given, (str, VariantUse)) else given
    if not isinstance(listed, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance] - notebooks pass anything
        raise _no_use(listed)
    uses = tuple(_use(one) for one in listed)
    if len(uses) > MAX_USES:
        raise InvalidArgument(
            f"{what} names {len(uses)} variants; at most {MAX_USES} apply together: compose some of them into one"
        )
    return uses


def _use(one: object) -> VariantUse:
    if isinstance(one, VariantUse):
        return one
    if isinstance(one, str):
        return VariantUse(one)
    raise _no_use(one)


def _no_use(given: object) -> InvalidArgument:
    return InvalidArgument(
        f"cannot use a {type(given).__name__} as a variant; give the name that it was loaded under (client.load_variant says "
        "it), use(name, scale), or a list of these"
    )
