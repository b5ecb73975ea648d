"""Where values go from one prompt of a pair to the other, when the two are not of one length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from ...clients.requests.aligning import Alignment, How, align as align_tokens
from ...protos.errors import InvalidArgument
from ...protos.model import Tokenized
from .grid import Positions
from .pairs import Pair, Side

__all__ = ["Align", "Places", "make_places", "may_differ"]

Given = How | Sequence[Mapping[str, tuple[int | str, int | str]]]
Align = Given | None
"""As of `clients.align`, from the prompt that runs to the other; roles may be one dict for all pairs, or one a pair."""


@dataclass(frozen=True, slots=True)
class Places:
    """Places that mean the same in every pair."""

    labels: tuple[int | str, ...] | None
    """Of the axis "position"; None: all places together."""
    of_pairs: tuple[tuple[tuple[int, int], ...], ...]
    """[pair][place]: (position in the prompt that runs, position in the other)."""

    def at(self, pair: Pair, place: int | None) -> tuple[tuple[int, int], ...]:
        """The positions of a cell; `place` None: all of them."""
        found = self.of_pairs[pair.index]
        return found if place is None else (found[place],)


def may_differ(align: Align, positions: Positions) -> bool:
    """Whether prompts of unequal length can be patched so: aligned, or at positions that all count from the end."""
    counted = not isinstance(positions, str) and bool(positions) and all(p < 0 for p in positions or ())
    return align is not None or counted


def make_places(pairs: Sequence[Pair], base: Side, other: Side, align: Align, positions: Positions) -> Places:
    """`positions`: in the prompt that runs. Raises InvalidArgument where pairs have no such places, or not as many."""
    if align is None:
        return _from_the_end(pairs, base, other, cast("Sequence[int]", positions))
    found = [_aligned(pair, base, other, how) for pair, how in zip(pairs, _per_pair(align, len(pairs)), strict=True)]
    if isinstance(positions, str):
        if positions != "all":
            raise InvalidArgument(
                f"positions {positions!r}; allowed: None (each), 'all' (together), or a list of integers"
            )
        return Places(None, tuple(one.pairs for one in found))
    if positions is not None:
        return Places(
            tuple(positions), tuple(_chosen(*each, base, positions) for each in zip(pairs, found, strict=True))
        )
    n = min(map(len, found))
    if align in ("start", "end"):  # as many as the shortest pair has
        places = [one.pairs[-n:] if align == "end" else one.pairs[:n] for one in found]
        return Places(tuple(range(-n, 0) if align == "end" else range(n)), tuple(places))
    if any(len(one) != n or one.names != found[0].names for one in found):
        told = ", ".join(str(len(one)) for one in found)
        raise InvalidArgument(
            f"the pairs align at {told} places, so no grid over them means the same in each: align by roles "
            '({"subject": (3, 5), …}), choose positions, or call once a pair'
        )
    return Places(found[0].names or found[0].positions, tuple(one.pairs for one in found))


def _from_the_end(pairs: Sequence[Pair], base: Side, other: Side, positions: Sequence[int]) -> Places:
    shortest = min(len(pair.ids(side)) for pair in pairs for side in (base, other))
    outside = [p for p in positions if p < -shortest]
    if outside:
        raise InvalidArgument(f"positions {outside} are not in every prompt; the shortest has {shortest} tokens")
    places = tuple((int(p), int(p)) for p in positions)
    return Places(tuple(positions), (places,) * len(pairs))


def _per_pair(align: Given, n: int) -> Sequence[How]:
    if isinstance(align, (str, Mapping)):
        every: list[How] = [align for _ in range(n)]
        return every
    if len(align) != n:
        raise InvalidArgument(f"{len(align)} alignments for {n} pairs; give one for all, or one a pair")
    return align


def _aligned(pair: Pair, base: Side, other: Side, how: How) -> Alignment:
    try:
        return align_tokens(_tokenized(pair, base), _tokenized(pair, other), how)
    except InvalidArgument as error:
        raise InvalidArgument(f"pair {pair.index}: {error.message}") from None


def _tokenized(pair: Pair, side: Side) -> Tokenized:
    return Tokenized(pair.ids(side), pair.tokens(side), "".join(pair.tokens(side)))


def _chosen(pair: Pair, found: Alignment, base: Side, positions: Sequence[int]) -> tuple[tuple[int, int], ...]:
    n, to = len(pair.ids(base)), dict(found.pairs)
    missing = [p for p in positions if not -n <= p < n or p % n not in to]
    if missing:
        raise InvalidArgument(
            f"pair {pair.index}: positions {missing} of its {base} prompt ({n} tokens) pair with none of the other; "
            f"paired are {sorted(to)}"
        )
    return tuple((p % n, to[p % n]) for p in positions)
