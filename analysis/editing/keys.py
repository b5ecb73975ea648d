"""What a model computes at chosen tokens of many prompts: the keys that a change goes by, and the streams that it moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...clients import Client, Input, capture
from ...clients.requests.hooks import Hooks
from .fact import Fact, Question
from .wording import PREFIXES, Worded, question_wording, wordings

__all__ = ["fact_rows", "preserved_keys", "rows_at"]

Floats = NDArray[np.float64]


def rows_at(
    client: Client, prompts: Sequence[Worded], sites: Sequence[str], *, hooks: Hooks = (), model: str = ""
) -> dict[str, Floats]:
    """Site → [prompt, width]: the row at each prompt's own position."""
    inputs = [Input(token_ids=one.ids, name=str(i)) for i, one in enumerate(prompts)]
    found: dict[str, list[Floats]] = {site: [] for site in sites}
    for start in range(0, len(inputs), 64):
        part = inputs[start : start + 64]
        places: dict[int, list[str]] = {}
        for item in part:
            places.setdefault(prompts[int(item.name)].position, []).append(item.name)
        reads = [capture(site, positions=p, inputs=names) for site in sites for p, names in places.items()]
        run = client.run(part, capture=reads, hooks=hooks, model=model, progress=False)
        for item in part:
            for site in sites:
                row: Any = np.asarray(run.inputs[item.name][site], dtype=np.float64)
                found[site].append(row[0])
    return {site: np.stack(rows) for site, rows in found.items()}


def fact_rows(
    client: Client,
    facts: Sequence[Fact],
    sites: Sequence[str],
    prefixes: Sequence[str] = PREFIXES,
    *,
    hooks: Hooks = (),
    model: str = "",
) -> dict[str, Floats]:
    """Site → [fact, width]: at each subject's last token, mean over the wordings that values are found with."""
    told = [wordings(client, fact, prefixes, "", model=model) for fact in facts]
    rows = rows_at(client, [one for several in told for one in several], sites, hooks=hooks, model=model)
    ends = np.cumsum([len(several) for several in told])[:-1]
    return {site: np.stack([part.mean(axis=0) for part in np.split(found, ends)]) for site, found in rows.items()}


def preserved_keys(
    client: Client, facts: Sequence[Fact], layer: int, *, hooks: Hooks = (), model: str = ""
) -> Floats | None:
    """[d_mlp, p]: keys of the facts' neighbours that are not held out, but for those about an edited subject.

    At the last token of the neighbour's subject; where it names none, at every token but the first.
    """
    edited = {fact.subject for fact in facts}
    asked = list(dict.fromkeys(q for fact in facts for q in fact.preserved if not _about(q, edited)))
    if not asked:
        return None
    prompts = [one for question in asked for one in _places(client, question, model)]
    return rows_at(client, prompts, [f"mlp_act.{layer}"], hooks=hooks, model=model)[f"mlp_act.{layer}"].T


def _about(question: Question, subjects: set[str]) -> bool:
    return question.subject in subjects or (not question.subject and any(one in question.prompt for one in subjects))


def _places(client: Client, question: Question, model: str) -> list[Worded]:
    if question.subject:
        return [question_wording(client, question, model=model)]
    ids = client.tokenize(question.prompt, model=model).token_ids
    return [Worded(ids, position, (), len(ids) - 1) for position in range(1, len(ids))]
