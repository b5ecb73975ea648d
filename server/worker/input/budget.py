"""How many tensor bytes a request will bring, known before it runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from ....backends.hooks.bound import Bindable, BoundHook, BoundPlan, chosen_positions
from ....backends.hooks.checks import widths_of
from ....protos.errors import ResourceExhausted
from ....protos.latents import ReadLatents
from ....protos.spec import Capture, Gather, Last, Mean, NextLogprob, Norm, Project, Site, TopK
from ....protos.tensors import numpy_dtype
from ...config import RequestLimits

if TYPE_CHECKING:
    from .prepared import PreparedInput

__all__ = ["check_bytes"]


def check_bytes(inputs: Iterable[PreparedInput], model: Bindable, limits: RequestLimits) -> int:
    """Bytes that `store` captures will take; raises when all captures together pass the limit."""
    sent = stored = 0
    for prepared in inputs:
        if prepared.sequence is None:
            continue
        plan = prepared.sequence.plan
        for bound in plan.hooks:
            capture = bound.hook.capture
            if capture is None:
                continue
            n_positions = len(chosen_positions(bound, plan, prepared.tokens))
            size = n_positions * sum(_row_bytes(bound, site, capture, model, plan) for site in bound.sites)
            stored, sent = (stored + size, sent) if capture.store else (stored, sent + size)
    if sent > limits.max_capture_bytes:
        raise ResourceExhausted(
            f"the captures asked for come to about {sent:,} bytes, the limit is {limits.max_capture_bytes:,}; "
            "choose fewer sites or positions, a smaller dtype, or a reduction such as last, mean or top_k"
        )
    return stored


def _row_bytes(bound: BoundHook, site: Site, capture: Capture, model: Bindable, plan: BoundPlan) -> int:
    """Bytes of one position's row of a hook at one of its sites."""
    reduce = capture.reduce
    if isinstance(reduce, ReadLatents):
        sae = bound.saes[reduce.sae]
        item = 8 if "float64" in (capture.dtype, sae.dtype) else 4
        n = len(reduce.ids) if reduce.ids is not None else sae.d_sae
        if reduce.top_k is None:
            return item * n
        return 4 + (4 + item) * reduce.top_k + (item * (reduce.top_k + 2) if capture.gradient else 0)
    item = numpy_dtype(capture.dtype or model.info.dtype).itemsize
    widths = widths_of(site, model)
    row = int(np.prod([w or plan.n_rows for w in widths]))
    if isinstance(reduce, (Last, Mean)):
        return -(-row * item // max(plan.n_rows, 1))
    if isinstance(reduce, TopK):
        return reduce.k * 12 * (widths[0] if len(widths) == 2 else 1)
    if isinstance(reduce, NextLogprob):
        return 4 + 12 * reduce.top
    if isinstance(reduce, Norm):
        return 4 * (widths[0] if len(widths) == 2 else 1)
    if isinstance(reduce, Project):
        return 4 * (reduce.directions.shape[0] if len(reduce.directions.shape) == 2 else 1)
    return 4 * len(reduce.ids) if isinstance(reduce, Gather) else row * item
