"""Numbers that have left their dtype: said in words, with the place where it began, never answered as text."""

from __future__ import annotations

import math
from collections.abc import Sequence as SequenceOf
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ...protos.errors import InvalidArgument, ProbewireError
from ...protos.sites import Site
from ...protos.spec import Capture, Hook, Norm
from .bound import Acting, BoundHook, BoundPlan

if TYPE_CHECKING:
    from .base import Backend
    from .metrics import BoundMetric
    from .sequence import Sequence

__all__ = ["NotFinite", "explained", "not_measured"]

STREAM = ("embed", "resid_mid", "resid_post", "final_norm", "logits")
"""Where to look, as far as the model offers them."""
_OWN = 1 << 30
"""Index of the first hook of ours, behind all of a plan's."""


class NotFinite(InvalidArgument):
    """A sequence came to values that are no numbers."""


def not_measured(metrics: SequenceOf[BoundMetric], values: SequenceOf[float]) -> NotFinite | None:
    """Why metrics' values say nothing, or None. Minus infinity is a log-probability like others.

    So is infinity a divergence: from a row of logits of which an edit has taken something out that the baseline says.
    """
    pairs = zip(metrics, values, strict=True)
    bad = [value for metric, value in pairs if math.isnan(value) or (value == math.inf and not metric.diverges)]
    return NotFinite(f"the metric came to {bad[0]}: values overflowed on the way to it") if bad else None


def explained(backend: Backend, sequence: Sequence, error: NotFinite) -> ProbewireError:
    """The error with the site at which it begins, found by a forward over the sequence; on the model's thread."""
    try:
        place = _first(backend, sequence)
    except ProbewireError:
        place = ""  # its hooks fail for another reason in a forward of their own
    where = f"; the first tensor that is not finite is {place}" if place else ""
    wider = (
        ""
        if backend.info.dtype == "float32"
        else f", or load the model in a dtype of more range than {backend.info.dtype}"
    )
    edits = [str(bound.hook.site) for bound in sequence.plan.hooks if bound.hook.edit is not None]
    less = f"make the edits weaker ({', '.join(dict.fromkeys(edits))})" if edits else "use another prompt"
    return NotFinite(f"{error.message}{where}; {less}{wider}")


def _first(backend: Backend, sequence: Sequence) -> str:
    """The first site and position, in the order of the forward, whose row has a norm that is no number."""
    sites = [
        Site(offered.name, layer)
        for offered in backend.info.sites
        if offered.name in STREAM and offered.run
        for layer in offered.layers or (None,)
    ]
    if not sites or len(sequence.tokens) > backend.limits.max_run_tokens:
        return ""
    sites.sort(key=lambda site: site.order or (0, 0))
    plan = _watched(backend, sequence.plan, sites)
    backend.bind(plan)
    again = replace(sequence, plan=plan, tokens=list(sequence.tokens), retired=[], metrics=(), backward=None)
    [result] = backend.run([again])
    if result.error is not None:
        raise result.error
    found = {rows.hook - _OWN: rows for rows in result.rows if rows.hook >= _OWN}
    for index, site in enumerate(sites):
        if index in found and not (fine := np.isfinite(found[index].values[0])).all():
            return f"{site} at position {found[index].positions[int(np.argmin(fine))]}"
    return ""


def _watched(backend: Backend, plan: BoundPlan, sites: list[Site]) -> BoundPlan:
    """The plan's edits as they are, and the norm of every row of the given sites after them."""
    copies = {id(bound): replace(bound, latch={}) for bound in plan.hooks}  # the forward decides its latches anew
    at = {point: [replace(one, bound=copies[id(one.bound)]) for one in acting] for point, acting in plan.at.items()}
    own: list[BoundHook] = []
    for index, site in enumerate(sites):
        own.append(BoundHook(_OWN + index, Hook(str(site), capture=Capture(reduce=Norm())), (site,)))
        spot = backend.points.spot(site)
        at.setdefault(spot.point, []).append(Acting(own[-1], 0, site, spot.view, first=True))
    return replace(
        plan,
        mode="run",
        hooks=(*copies.values(), *own),
        at=at,
        by_site={},
        plain={},
        latents={},
        sites=plan.sites | frozenset(sites),
        owner=None,
    )
