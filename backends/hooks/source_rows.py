"""Rows that a `replace` brings: sent along, stored, or taken of another input; and which position each one goes to."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from ...protos.edits import Constant, FromInput, Inline, Replace, Stored, Zeros
from ...protos.errors import InvalidArgument, NotFound
from ...protos.sites import Site
from ...protos.spec import Span, Where
from ...protos.tensors import Array
from .alarms import no_key_left
from .bound import Bindable, BoundHook, BoundPlan, choose, chosen_positions
from .checks import widths_of

__all__ = ["attach_source", "check_keys_left", "give_rows"]


def attach_source(
    bound: BoundHook,
    plan: BoundPlan,
    model: Bindable,
    tokens: list[int],
    input_lengths: Mapping[str, int],
    stored: Mapping[str, Array],
) -> None:
    """Give a bound hook the rows that its `replace` brings, or say what it still needs. Raises InvalidArgument."""
    edit = bound.hook.edit
    if not isinstance(edit, Replace) or isinstance(edit.source, (Constant, Zeros)):
        return
    source, where = edit.source, f"hook {bound.index} ({bound.hook.site})"
    positions = _in_listed_order(bound, plan, chosen_positions(bound, plan, tokens))
    if isinstance(source, Inline):
        bound.source = _rows_first(bound.sites[0], source.value.numpy())
    elif isinstance(source, Stored):
        if source.capture_id not in stored:
            raise NotFound(f"{where}: no stored capture {source.capture_id!r}")
        bound.source = _rows_first(bound.sites[0], stored[source.capture_id])
    else:
        named = _as_named(bound.hook.where, plan.prompt_length, positions)
        bound.needs = (source.input, _source_positions(source, named, input_lengths, where))
    _check_known(bound, plan, tokens, where)
    if bound.source is not None and len(bound.source) != len(positions):
        raise InvalidArgument(_MISMATCH.format(where=where, rows=len(bound.source), positions=len(positions)))
    bound.row_of = {int(p): i for i, p in enumerate(positions)}
    _check_source(bound, model)


def check_keys_left(bound: BoundHook, plan: BoundPlan, tokens: list[int]) -> None:
    """Raise InvalidArgument where a hook alone takes out every key that some row sees.

    What several hooks do together, or one within a window or under a condition, shows in the forward.
    """
    edit = bound.hook.edit
    if bound.hook.where.when is not None or not isinstance(edit, Replace) or not edit.takes_out:
        return
    if bound.sites[0].name != "attn_scores":
        return
    assert isinstance(edit.source, (Constant, Inline))
    out = np.isneginf(edit.source.value.numpy())  # one number, [key], [head, key]; rows sent along: [head, row, key]
    units = edit.units or tuple(range(out.shape[-1]))
    for position in chosen_positions(bound, plan, tokens).tolist():
        own = out[:, bound.row_of[position]] if isinstance(edit.source, Inline) else out
        seen = np.array([unit <= position for unit in units])
        if ((own & seen).sum(axis=-1) == position + 1).any():
            raise no_key_left(bound.sites[0])(position)


def _check_source(bound: BoundHook, model: Bindable) -> None:
    """Raise InvalidArgument for a stored capture whose rows are not those of the site."""
    edit, site = bound.hook.edit, bound.sites[0]
    if bound.source is None or not isinstance(edit, Replace) or not isinstance(edit.source, Stored):
        return
    found, expected = bound.source.shape[1:], widths_of(site, model)
    if (
        found[: len(expected) - 1] != expected[:-1]
        or len(found) != len(expected)
        or found[-1] != (expected[-1] or found[-1])
    ):
        raise InvalidArgument(
            f"hook {bound.index} ({bound.hook.site}): rows of stored capture {edit.source.capture_id!r} have shape "
            f"{list(found)}, those of {site} have {list(expected)}; use a capture of the same site of this model"
        )


def _check_known(bound: BoundHook, plan: BoundPlan, tokens: list[int], where: str) -> None:
    """Rows pair with positions beforehand: raise InvalidArgument where a generation's own tokens would choose them."""
    if bound.hook.where.token_ids is None or plan.n_rows <= len(tokens):
        return
    generated = np.arange(len(tokens), plan.n_rows)
    if choose(bound, plan, bound.sites[0], generated, None).any():
        raise InvalidArgument(
            f"{where}: which generated tokens where.token_ids chooses is not known before they are sampled, and source "
            "rows pair with positions beforehand; set where.phase to 'prompt'"
        )


_MISMATCH = (
    "{where}: the source has {rows} rows, but the hook chooses {positions} positions; they pair in order, so the "
    "numbers must match (narrow where.positions, or set where.phase to 'prompt')"
)


def _in_listed_order(bound: BoundHook, plan: BoundPlan, positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Positions as the user listed them, which is how they pair with source rows; ascending where none were listed."""
    listed = bound.hook.where.positions
    if listed is None:
        return positions
    absolute = [p + plan.prompt_length if p < 0 else p for p in listed]
    if len(set(absolute)) != len(absolute):
        raise InvalidArgument(
            f"hook {bound.index} ({bound.hook.site}): where.positions {list(listed)[:8]} name a token twice (the prompt has "
            f"{plan.prompt_length}), so it is not clear which source row it gets; name each once"
        )
    return np.array([p for p in absolute if p in positions], dtype=np.int64)


def _as_named(where: Where, prompt_length: int, positions: NDArray[np.int64]) -> tuple[int, ...]:
    """Chosen positions as the hook names them: those that it counts from the prompt's end are negative."""
    from_end = {p + prompt_length for p in where.positions or () if p < 0}
    if where.spans is not None:
        for position in range(prompt_length):
            span = next((span for span in where.spans if _inside(span, position, prompt_length)), None)
            if span is not None and span.start < 0:
                from_end.add(position)
    return tuple(p - prompt_length if p in from_end else p for p in positions.tolist())


def _inside(span: Span, position: int, prompt_length: int) -> bool:
    start = span.start + prompt_length if span.start < 0 else span.start
    stop = math.inf if span.stop is None else span.stop + prompt_length if span.stop < 0 else span.stop
    return start <= position < stop


def _source_positions(
    source: FromInput, named: tuple[int, ...], input_lengths: Mapping[str, int], where: str
) -> tuple[int, ...]:
    """Positions in the other input, checked against its length and the hook's own number.

    `named`: the hook's own; without positions of the source's, those counted from the end are so on either side.
    """
    if source.input not in input_lengths:
        names = ", ".join(input_lengths) or "none"
        raise InvalidArgument(f"{where}: there is no input {source.input!r} in this request; its inputs: {names}")
    length = input_lengths[source.input]
    wanted = named if source.positions is None else source.positions
    absolute = tuple(p + length if p < 0 else p for p in wanted)
    outside = [p for p in absolute if not 0 <= p < length]
    if outside:
        raise InvalidArgument(
            f"{where}: positions {outside[:8]} are outside input {source.input!r}, which has {length} tokens (only prompt "
            "positions can be taken: set where.phase to 'prompt'; for prompts of unequal length count both from the end, "
            "with negative positions, or give the source's own: from_input.positions)"
        )
    if len(absolute) != len(named):
        raise InvalidArgument(_MISMATCH.format(where=where, rows=len(absolute), positions=len(named)))
    return absolute


def give_rows(bound: BoundHook, rows: list[dict[int, Array]]) -> None:
    """Fill a hook's `needs`: for each of its sites, the other input's rows by position."""
    assert bound.needs is not None
    bound.source = np.stack([np.stack([by_position[p] for p in bound.needs[1]]) for by_position in rows])
    bound.per_site, bound.needs = True, None


def _rows_first(site: Site, value: Array) -> Array:
    return np.swapaxes(value, 0, 1) if site.name in ("attn_scores", "attn_probs") else value
