"""Results at a glance, for a terminal and for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

from ..protos.assemble import AssembledCapture
from ..protos.model import Started
from ..protos.sites import Site
from ..protos.telling import told
from ..protos.tensors import dtype_name
from .captures import Captures

if TYPE_CHECKING:
    from .asked import Asked
    from .input_result import InputResult

__all__ = ["html_table", "input_rows", "summary_rows", "text_table"]

MAX_TEXT_CHARS = 300
MAX_SITE_ROWS = 12
MAX_EDIT_ROWS = 4
MAX_INPUT_ROWS = 16


def summary_rows(started: Started, inputs: Sequence[InputResult], asked: Asked | None = None) -> list[tuple[str, str]]:
    """(label, value) lines: the model, how it was sampled and edited, then text and sites of each input."""
    rows = [("model", f"{started.model}   {started.backend} · {started.device} · {started.dtype}")]
    if asked is not None:
        rows += _asked_rows(asked)
    unnamed = frozenset(hook.hook for hook in started.hooks if hook.saes)
    for item in inputs[:MAX_INPUT_ROWS]:
        if len(inputs) > 1:
            rows.append((f"[{item.name}]", ""))
        rows += input_rows(item, unnamed)
    more = len(inputs) - MAX_INPUT_ROWS
    return rows if more <= 0 else [*rows, ("…", f"{more} more inputs")]


def _asked_rows(asked: Asked) -> list[tuple[str, str]]:
    """What was asked beyond captures of the inputs as they are."""
    rows: list[tuple[str, str]] = []
    if asked.operation == "generate" and asked.sampling.temperature:
        sampling = asked.sampling
        parts = [f"temperature {sampling.temperature:g}"]
        parts += [f"top_p {sampling.top_p:g}"] if sampling.top_p < 1 else []
        parts += [f"top_k {sampling.top_k}"] if sampling.top_k else []
        parts += [f"seed {sampling.seed}"] if sampling.seed is not None else []
        rows.append(("sampling", " · ".join(parts)))
    edits = [hook for hook in asked.plan.hooks if hook.edit is not None]
    rows += [("edit", f"{hook.site}  {told(hook)}") for hook in edits[:MAX_EDIT_ROWS]]
    more = len(edits) - MAX_EDIT_ROWS
    return rows if more <= 0 else [*rows, ("…", f"{more} more edits")]


def text_table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """Lines with aligned labels."""
    width = max(len(label) for label, _ in rows)
    return "\n".join([title, *(f"  {label:<{width}}  {value}".rstrip() for label, value in rows)])


def html_table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """A plain table; everything that a model wrote is escaped."""
    body = "".join(
        f'<tr><td style="text-align:left">{escape(label)}</td>'
        f'<td style="text-align:left;white-space:pre-wrap">{escape(value)}</td></tr>'
        for label, value in rows
    )
    return f"<b>{escape(title)}</b><table>{body}</table>"


def input_rows(item: InputResult, unnamed: frozenset[int] = frozenset()) -> list[tuple[str, str]]:
    """The lines of one input; `unnamed`: hooks whose captures have other axes than their sites."""
    rows = [("prompt", f"{len(item.prompt_ids)} tokens  {_clipped(''.join(item.prompt_tokens))}")]
    if item.new:
        rows.append(("text", _clipped(item.text)))
        reason = f", ended by {item.finished.reason}" if item.finished is not None else ", not ended"
        speed = f", {item.tokens_per_s:.1f} tokens/s" if item.tokens_per_s else ""
        rows.append(("new", f"{len(item.new)} tokens{reason}{speed}"))
    if item.revisions:
        turns = ", ".join(
            f"{revised.revision} from token {_first(item, revised.revision)}" for revised in item.revisions
        )
        rows.append(("session", f"revision {turns}"))
    if item.measured:
        rows.append(("metric", ", ".join(f"{value:.6g}" for value in item.measured)))
    rows += [(f"∂ {label}", value) for label, value in _site_rows(item.gradients, unnamed)]
    rows += _site_rows(item.captures, unnamed)
    return rows + [("stored", f"{kept.id}  {kept.site} {list(kept.shape)} {kept.dtype}") for kept in item.stored]


def _first(item: InputResult, revision: int) -> int:
    """Index of the first new token that was sampled under a revision."""
    return next((token.index for token in item.new if token.revision >= revision), len(item.new))


def _site_rows(captures: Captures, unnamed: frozenset[int]) -> list[tuple[str, str]]:
    """A line for each run of layers whose tensors look alike."""
    several = len({entry.key.hook for entry in captures.entries}) > 1
    lines: list[tuple[str, str]] = []
    for look, group in groupby(sorted(captures.entries, key=_order), key=lambda entry: _look(entry, unnamed)):
        sites = [Site.parse(entry.key.site) for entry in group]
        label = str(sites[0])
        if len(sites) > 1:
            layers = [site.layer or 0 for site in sites]
            label = f"{sites[0].name}.{layers[0]}…{layers[-1]}"
        note = "  hook " + repr(look[1]) if several else ""
        note += f"  since revision {look[6]}" if len(captures.revisions) > 1 else ""
        lines.append((label, f"{look[4]} {look[3]}{' ' + look[5] if look[5] else ''}{note}"))
    more = len(lines) - MAX_SITE_ROWS
    return lines if more <= 0 else [*lines[:MAX_SITE_ROWS], ("…", f"{more} more lines of sites")]


def _order(entry: AssembledCapture) -> tuple[int, int, str, str, int]:
    site, key = Site.parse(entry.key.site), entry.key
    return (key.hook, key.revision, site.name, key.part, -1 if site.layer is None else site.layer)


def _look(entry: AssembledCapture, unnamed: frozenset[int]) -> tuple[int, str, str, str, str, str, int]:
    site, key = Site.parse(entry.key.site), entry.key
    name = key.site if site.name == "module" else site.name
    return (
        key.hook,
        entry.id,
        name,
        dtype_name(entry.array.dtype),
        _shape(entry, site, unnamed),
        key.part,
        key.revision,
    )


def _shape(entry: AssembledCapture, site: Site, unnamed: frozenset[int]) -> str:
    """`[pos 12, d_model 576]`; without names where a reduction or an SAE changed the axes."""
    shape = entry.array.shape
    named = len(shape) == len(site.axes) and not entry.key.part and entry.key.hook not in unnamed
    return (
        f"[{', '.join(f'{axis} {n}' for axis, n in zip(site.axes, shape, strict=True))}]" if named else str(list(shape))
    )


def _clipped(text: str) -> str:
    return repr(text if len(text) <= MAX_TEXT_CHARS else text[: MAX_TEXT_CHARS - 1] + "…")
