"""Results at a glance, for a terminal and for a notebook."""

from __future__ import annotations

from collections.abc import Sequence

from ...protos.generation.sampling import Sampling
from ...protos.model import Started
from ...protos.telling import told
from ..requests.asked import Asked
from .input_result import InputResult, input_rows

__all__ = ["summary_rows"]

MAX_EDIT_ROWS = 4
MAX_INPUT_ROWS = 16
_PLAIN = Sampling()


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
    sampling = asked.sampling
    if asked.operation == "generate" and (sampling.temperature or sampling.adjusts):
        parts = [f"temperature {sampling.temperature:g}"]
        parts += [f"top_p {sampling.top_p:g}"] if sampling.top_p < 1 else []
        parts += [f"top_k {sampling.top_k}"] if sampling.top_k else []
        parts += [f"seed {sampling.seed}"] if sampling.seed is not None else []
        for name in ("repetition_penalty", "frequency_penalty", "presence_penalty"):
            value = getattr(sampling, name)
            parts += [f"{name} {value:g}"] if value != getattr(_PLAIN, name) else []
        parts += [f"{len(sampling.logit_bias)} biases"] if sampling.logit_bias else []
        parts += [f"grammar: {sampling.grammar.kind}"] if sampling.grammar is not None else []
        rows.append(("sampling", " · ".join(parts)))
    edits = [hook for hook in asked.plan.hooks if hook.edit is not None]
    rows += [("edit", f"{hook.site}  {told(hook)}") for hook in edits[:MAX_EDIT_ROWS]]
    more = len(edits) - MAX_EDIT_ROWS
    return rows if more <= 0 else [*rows, ("…", f"{more} more edits")]
