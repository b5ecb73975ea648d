"""Gradients made ready for the model's thread: metrics, rules and paths."""

from __future__ import annotations

from collections.abc import Mapping

from ....backends.hooks.backward import without_gradient
from ....backends.hooks.bound import BoundBackward, BoundHook, BoundPath
from ....backends.hooks.gradients import rows_of
from ....backends.hooks.metrics import BoundMetric, bind_metric
from ....backends.hooks.sequence import Sequence
from ....protos.depth import request_at_depth
from ....protos.errors import InvalidArgument, ResourceExhausted
from ....protos.gradients import GradientsRequest, targets_of
from ....protos.latents import ReadLatents
from ....protos.metrics import Target
from ....protos.model import ModelInfo
from ....protos.sites import Site
from ....protos.spec import Capture, Hook, Where
from ..forwards import GRADIENT_COST
from .binding import Binding
from .budget import check_bytes
from .generate import input_sequence, started_of
from .prepared import Prepared, PreparedInput
from .sources import check_hook_inputs, set_levels, set_sources

__all__ = ["metrics_of", "prepare_gradients"]


def prepare_gradients(request: GradientsRequest, binding: Binding) -> Prepared:
    """Check a request for gradients. Raises before anything runs."""
    info, request_id = binding.info, binding.request_id
    request = request_at_depth(request, info.n_layers)
    _check_rules(request, info)
    inputs = [PreparedInput(i, binding.tokens_of(i), False) for i in request.inputs]
    binding = binding.of(inputs).running(*request.variants)
    lengths = binding.lengths
    check_hook_inputs(request.plan, lengths)
    set_levels(inputs, request.plan.hooks)
    for index, item in enumerate(inputs):
        if not item.item.source_only:
            sequence = input_sequence(f"{request_id}.{index}", "gradients", request, item, binding)
            sequence.metrics = metrics_of(item, request.targets, info, lengths)
            path = _path(request, item, info, lengths)
            sequence.backward = BoundBackward(frozenset(request.rules), request.direct, path)
            _check_room(sequence, item.item.name, binding.backend.limits.max_run_tokens // GRADIENT_COST)
            item.sequence = sequence
    set_sources(request.plan, inputs, binding)
    store_bytes = check_bytes(inputs, binding.backend, binding.limits)
    started = started_of(request.plan, inputs, binding)
    return Prepared(request_id, "gradients", request.plan, inputs, started, store_bytes)


def _check_room(sequence: Sequence, name: str, most: int) -> None:
    """One that does not fit in a batch by itself would take more memory than anybody has set aside."""
    rows = rows_of(sequence)
    if rows > most:
        raise ResourceExhausted(
            f"the gradient of input {name!r} takes {rows:,} token rows (its tokens times the points of its path); at "
            f"most {most:,} are allowed: shorten the prompt, or lower path.steps"
        )


def _check_rules(request: GradientsRequest, info: ModelInfo) -> None:
    refused = [rule for rule in request.rules if rule not in info.rules]
    if refused:
        allowed = ", ".join(info.rules) or "none"
        raise InvalidArgument(
            f"rules {refused} cannot be honoured on {info.architecture} ({info.backend}): they need norms of a known "
            f"formula, and MLPs whose branches are sites; allowed here: {allowed}"
        )
    inside = info.site("mlp_in")
    if request.direct and (inside is None or inside.layers != tuple(range(info.n_layers))):
        raise InvalidArgument(
            f"direct needs the input of every layer's MLP, and {info.architecture} ({info.backend}) does not offer it: "
            f"{info.refused.get('mlp_in', 'it has no such site')}; leave it out"
        )
    for index, hook in enumerate(request.plan.hooks):
        if hook.capture is None:
            continue
        site = Site(hook.site.partition(".")[0])
        if hook.capture.gradient and (reason := without_gradient(site, frozenset(request.rules))):
            raise InvalidArgument(f"hook {index} ({hook.site}): {reason}; leave the rule or the site out")
        if request.path is not None and isinstance(hook.capture.reduce, ReadLatents):
            raise InvalidArgument(
                f"hook {index} ({hook.site}): on a path a row's latents differ at each point; leave the path out, or "
                "capture the whole gradient"
            )
        if request.path is not None and not hook.capture.gradient:
            raise InvalidArgument(
                f"hook {index} ({hook.site}): on a path values differ at each point; read them in a run"
            )


def metrics_of(
    item: PreparedInput, targets: tuple[Target, ...], info: ModelInfo, lengths: Mapping[str, int]
) -> tuple[BoundMetric, ...]:
    """What is measured on an input. Raises InvalidArgument for metrics that do not fit it."""
    return tuple(
        bind_metric(
            target.metric,
            info,
            n_tokens=len(item.tokens),
            prompt_length=item.item.prompt_length or len(item.tokens),
            input_lengths=lengths,
            what=f"target {targets.index(target)} of input {item.item.name!r}",
        )
        for target in targets_of(item.item, targets)
    )


def _path(
    request: GradientsRequest, item: PreparedInput, info: ModelInfo, lengths: Mapping[str, int]
) -> BoundPath | None:
    path = request.path
    if path is None:
        return None
    site, name = Site.parse(path.site), item.item.name
    offered = info.site(site.name)
    if offered is None or not offered.gradients or site.name in ("attn_scores", "attn_probs", "logits"):
        raise InvalidArgument(f"path.site {path.site} cannot be walked along; take embed or another site of rows")
    if offered.layers is not None and site.layer not in offered.layers:
        raise InvalidArgument(f"path.site: {site.name} does not exist at layer {site.layer}")
    if path.source not in lengths:
        raise InvalidArgument(f"path.source: there is no input {path.source!r}; the request has {list(lengths)}")
    if lengths[path.source] != lengths[name]:
        raise InvalidArgument(
            f"a path needs inputs of equal length: {path.source!r} has {lengths[path.source]} tokens, {name!r} has "
            f"{lengths[name]}"
        )
    positions = tuple(range(lengths[name]))
    other = BoundHook(-1, Hook(path.site, capture=Capture(), where=Where(positions=positions)), (site,))
    other.needs = (path.source, positions)
    return BoundPath(path, other)
