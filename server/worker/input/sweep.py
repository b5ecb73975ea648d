"""Sweeps made ready for the model's thread: every plan of them."""

from __future__ import annotations

from itertools import chain

from ....backends.hooks.bound import BoundPlan
from ....backends.hooks.sequence import Sequence
from ....backends.hooks.sweeps import hooks_in, no_sweeps, start_of
from ....protos.depth import request_at_depth
from ....protos.errors import InvalidArgument, ResourceExhausted
from ....protos.spec import Plan
from ....protos.sweeps import SweepRequest
from .binding import Binding
from .generate import started_of
from .gradients import metrics_of
from .prepared import Prepared, PreparedInput
from .sources import check_hook_inputs, set_levels, set_sources

__all__ = ["prepare_sweep"]

MAX_FORWARDS = 1 << 15
"""Plans times inputs of one sweep."""


def prepare_sweep(request: SweepRequest, binding: Binding) -> Prepared:
    """Check a sweep, every plan of it. Raises before anything runs."""
    info, request_id = binding.info, binding.request_id
    if "sweeps" in info.refused:
        raise no_sweeps(info)
    measured = sum(not item.source_only for item in request.inputs)
    if len(request.plans) * measured > MAX_FORWARDS:
        raise ResourceExhausted(
            f"{len(request.plans):,} plans on {measured} inputs are {len(request.plans) * measured:,} forwards; one "
            f"sweep takes {MAX_FORWARDS:,}: send it in parts"
        )
    request = request_at_depth(request, info.n_layers)
    inputs = [PreparedInput(i, binding.tokens_of(i), False) for i in request.inputs]
    binding = binding.of(inputs).running(*request.variants)
    lengths = binding.lengths
    for plan in (request.base, *request.plans):
        check_hook_inputs(plan, lengths)
    set_levels(inputs, chain(request.base.hooks, *(plan.hooks for plan in request.plans)))
    for index, item in enumerate(inputs):
        if not item.item.source_only:
            base, *variants = _bound_plans(request, item, binding)
            sequence = Sequence(f"{request_id}.{index}", list(item.tokens), base.prompt_length, base)
            sequence.metrics = metrics_of(item, request.targets, info, lengths)
            if any(metric.site is not None for metric in sequence.metrics):
                raise InvalidArgument("a sweep measures logits; for a coordinate of a site use a run or gradients")
            item.sequence, item.variants = sequence, variants
            item.order = _order(base, variants, item.tokens, info.n_layers, share=request.share)
    set_sources(request.base, inputs, binding)
    started = started_of(request.base, inputs, binding)
    return Prepared(request_id, "sweep", request.base, inputs, started, share=request.share)


def _order(
    base: BoundPlan, variants: list[BoundPlan], tokens: list[int], n_layers: int, *, share: bool
) -> list[tuple[int, int]]:
    """(token rows, index) of each variant, those that begin at the same position together."""
    if not share:
        return [(len(tokens), index) for index in range(len(variants))]
    starts = [start_of(variant, hooks_in(base), tokens, n_layers) for variant in variants]
    order = sorted(range(len(variants)), key=lambda index: starts[index])
    return [(max(len(tokens) - max(starts[index].position, 0), 0), index) for index in order]


def _bound_plans(request: SweepRequest, item: PreparedInput, binding: Binding) -> list[BoundPlan]:
    """The base alone, then with each plan. Raises InvalidArgument, naming the plan."""
    found: list[BoundPlan] = []
    for index, plan in enumerate((Plan(), *request.plans)):
        try:
            found.append(binding.bound(Plan((*request.base.hooks, *plan.hooks)), "sweep", item))
        except InvalidArgument as error:
            raise InvalidArgument(f"{'base' if index == 0 else f'plan {index - 1}'}: {error.message}") from None
    return found
