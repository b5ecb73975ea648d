"""Hooks in a line each, for people: what is done, how strongly, where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .edits import (
    Add,
    Affine,
    Clamp,
    Constant,
    Edit,
    FromInput,
    Inline,
    LowRank,
    Noise,
    ProjectOut,
    Replace,
    Scale,
    Source,
    Stored,
)
from .hooks import AllOf, Capture, Condition, Gather, Hook, Project, Reduction, TopK, When, Where
from .latents import LatentChange, Latents, ReadLatents
from .tensors import Tensor

__all__ = ["told", "told_edit", "told_plan"]

MAX_SHOWN, MAX_LINES = 6, 40
_OPS = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}


def told_plan(hooks: Sequence[Hook]) -> str:
    """A table, a line a hook."""
    count = len(hooks)
    lines = [(str(index), hook.site, told(hook)) for index, hook in enumerate(hooks)]
    widths = [max((len(line[column]) for line in lines), default=0) for column in (0, 1)]
    body = [f"  {index:>{widths[0]}}  {site:<{widths[1]}}  {what}" for index, site, what in lines[:MAX_LINES]]
    more = [f"  … {count - MAX_LINES} more"] if count > MAX_LINES else []
    return "\n".join([f"Plan of {count} hook{'' if count == 1 else 's'}", *body, *more])


def told(hook: Hook) -> str:
    """What a hook does, and where; its site aside."""
    parts = [] if hook.edit is None else [told_edit(hook.edit)]
    if hook.capture is not None:
        parts.append(_told_capture(hook.capture))
    parts += _told_where(hook.where)
    if hook.inputs is not None:
        parts.append(f"inputs {_few(hook.inputs)}")
    if hook.id is not None:
        parts.append(f"id {hook.id!r}")
    return " · ".join(parts)


def told_edit(edit: Edit) -> str:
    """What an edit does, with its strength: `add 3·v, ‖v‖ 4.21`."""
    parts = [f", {name} {_few(ids)}" for name, ids in (("heads", edit.heads), ("units", edit.units)) if ids is not None]
    return _what(edit) + "".join(parts)


def _what(edit: Edit) -> str:
    if isinstance(edit, Add):
        return f"add {edit.alpha:g}·{'‖h‖·v/‖v‖' if edit.norm_match else 'v'}, ‖v‖ {_norm(edit.vector)}"
    if isinstance(edit, Scale):
        return f"scale by {edit.factor:g}"
    if isinstance(edit, Replace):
        return f"replace by {_told_source(edit.source)}"
    if isinstance(edit, ProjectOut):
        return f"project out {_count(edit.directions)}"
    if isinstance(edit, Clamp):
        bounds = f"[{'−∞' if edit.min is None else f'{edit.min:g}'}, {'∞' if edit.max is None else f'{edit.max:g}'}]"
        return f"clamp to {bounds}{'' if edit.directions is None else f' along {_count(edit.directions)}'}"
    if isinstance(edit, Noise):
        return f"noise of std {edit.std:g}, seed {edit.seed}"
    if isinstance(edit, LowRank):
        return f"low-rank edit of rank {edit.a.shape[1]}, alpha {edit.alpha:g}"
    if isinstance(edit, Affine):
        return f"affine map of rank {edit.a.shape[1]}, alpha {edit.alpha:g}"
    return _told_latents(edit)


def _told_latents(edit: Latents) -> str:
    changes = _few([_told_change(change) for change in edit.changes]) if edit.changes else "reconstruction"
    return f"latents of {edit.sae!r}: {changes}{'' if edit.error or not edit.changes else ', without the error'}"


def _told_change(change: LatentChange) -> str:
    values = {name: getattr(change, name) for name in ("set", "add", "scale", "min", "max")}
    given = " ".join(f"{name} {value:g}" for name, value in values.items() if value is not None)
    return f"{change.id} {given}{' where active' if change.active else ''}"


def _told_source(source: Source) -> str:
    if isinstance(source, Constant):
        return f"a constant, ‖c‖ {_norm(source.value)}"
    if isinstance(source, Inline):
        return f"rows sent along, {list(source.value.shape)}"
    if isinstance(source, Stored):
        return f"the stored capture {source.capture_id!r}"
    if isinstance(source, FromInput):
        at = "" if source.positions is None else f" at positions {_few(source.positions)}"
        return f"input {source.input!r}{at}"
    return "zeros"


def _told_capture(capture: Capture) -> str:
    what = "gradient" if capture.gradient else "capture"
    what += "" if capture.reduce is None else f" {_told_reduction(capture.reduce)}"
    flags = [f"as {capture.dtype}"] * (capture.dtype is not None)
    flags += ["before edits"] * capture.before + ["stored"] * capture.store
    return ", ".join([what, *flags])


def _told_reduction(reduce: Reduction) -> str:
    if isinstance(reduce, ReadLatents):
        ids = "" if reduce.ids is None else f"{_few(reduce.ids)} "
        return f"{ids if reduce.top_k is None else f'the top {reduce.top_k} '}latents of {reduce.sae!r}"
    if isinstance(reduce, TopK):
        return f"top {reduce.k}"
    if isinstance(reduce, Project):
        return f"projected on {_count(reduce.directions)}"
    if isinstance(reduce, Gather):
        return f"of units {_few(reduce.ids)}"
    return {"NextLogprob": "next_logprob"}.get(type(reduce).__name__, type(reduce).__name__.lower())


def _told_where(where: Where) -> list[str]:
    parts: list[str] = []
    if where.positions is not None:
        parts.append(f"positions {_few(where.positions)}")
    if where.spans is not None:
        spans = [f"{span.start}:{'' if span.stop is None else span.stop}" for span in where.spans]
        parts.append(f"spans {_few(spans)}")
    if where.phase != "all":
        parts.append(f"{where.phase} tokens")
    if where.token_ids is not None:
        parts.append(f"token ids {_few(where.token_ids)}")
    if where.when is not None:
        parts.append(_told_when(where.when))
    return parts


def _told_when(when: When) -> str:
    between = " and " if isinstance(when, AllOf) else " or "
    return f"when {between.join(_told_condition(one) for one in when.parts)}"


def _told_condition(when: Condition) -> str:
    what = f"unit {when.unit}" if when.unit is not None else "a direction"
    head = "" if when.head is None else f" of head {when.head}"
    site = f" of {when.site}" if when.site else ""
    latch = "" if when.latch is None else f", latched by the prompt's {when.latch}"
    cosine = "the cosine of " if when.normalise else ""
    return f"{cosine}{what}{head}{site} {_OPS[when.op]} {when.threshold:g}{latch}"


def _norm(tensor: Tensor) -> str:
    norms = np.linalg.norm(tensor.floats().astype(np.float64), axis=-1)
    return f"{float(norms):.4g}" if norms.ndim == 0 else f"{float(norms.min()):.4g} … {float(norms.max()):.4g}"


def _count(directions: Tensor) -> str:
    n = directions.shape[0] if len(directions.shape) == 2 else 1
    return f"{n} direction{'' if n == 1 else 's'}"


def _few(values: Sequence[object]) -> str:
    listed = [str(value) for value in values]
    return ", ".join(listed[:MAX_SHOWN]) + (f", … ({len(listed)})" if len(listed) > MAX_SHOWN else "")
