"""A request made ready for the model's thread: tokens, checked plans, and the order in which inputs must run."""

from __future__ import annotations

import secrets
from dataclasses import replace
from functools import partial

from ....backends.hooks.bound import BoundPlan, Mode
from ....backends.hooks.sequence import Sequence
from ....backends.sampling.adjusted import Adjusted
from ....protos.depth import request_at_depth
from ....protos.errors import FailedPrecondition, InvalidArgument
from ....protos.generation.sampling import Sampling
from ....protos.gradients import GradientsRequest
from ....protos.model import GenerateRequest, InputStarted, RunRequest, Started
from ....protos.sessions import Session
from ....protos.spec import Plan
from .binding import Binding
from .budget import check_bytes
from .prepared import Prepared, PreparedInput, resolved
from .sources import check_hook_inputs, set_levels, set_sources, source_sequence

__all__ = [
    "input_sequence",
    "prepare_generate",
    "prepare_run",
    "started_of",
]


SEEDS = 1 << 63
"""Input i samples with seed + i; after the largest seed comes 0."""


def prepare_generate(request: GenerateRequest, binding: Binding, session: Session | None = None) -> Prepared:
    """Check a generation. Raises before anything runs. `session` is what `request.session` names."""
    info, most = binding.info, binding.limits.max_new_tokens
    if binding.backend.engine is None:
        raise FailedPrecondition(f"model {info.id} does not generate on {info.backend}: {info.generate_note}")
    if request.sampling.max_new_tokens > most:
        raise InvalidArgument(f"sampling.max_new_tokens {request.sampling.max_new_tokens} is above the limit of {most}")
    return _prepare("generate", request, binding, session)


def prepare_run(request: RunRequest, binding: Binding) -> Prepared:
    """Check a run. Raises before anything runs."""
    return _prepare("run", request, binding, None)


def _prepare(mode: Mode, request: GenerateRequest | RunRequest, binding: Binding, session: Session | None) -> Prepared:
    request = request_at_depth(request, binding.info.n_layers)
    request_id, revision, own_plan = binding.request_id, 0, request.plan
    binding = binding.running(*(() if session is None else session.variants), *request.variants)
    if session is not None:
        request, revision = replace(request, plan=followed(request.plan, session)), session.revision
    for item in request.inputs:
        if mode == "generate" and item.prompt_length is not None:
            raise InvalidArgument(
                f"input {item.name!r}: prompt_length is for runs, which may repeat a generation; in a generation the whole "
                "input is the prompt: leave it out"
            )
    inputs = [PreparedInput(i, binding.tokens_of(i), mode == "generate" and not i.source_only) for i in request.inputs]
    binding = binding.of(inputs, len(own_plan.hooks))
    check_hook_inputs(request.plan, binding.lengths)
    set_levels(inputs, request.plan.hooks)
    seed = _seed(request)
    for index, prepared in enumerate(inputs):
        if not prepared.item.source_only:
            name = f"{request_id}.{index}"
            prepared.sequence = input_sequence(name, mode, request, prepared, binding, (seed + index) % SEEDS)
            if isinstance(request, GenerateRequest):
                prepared.sequence.adjusted = _adjusted(request.sampling, prepared, binding)
    set_sources(request.plan, inputs, binding)
    for sequence in (s for item in inputs for s in (item.sequence, item.source) if s is not None):
        sequence.plan.revision = revision
    store_bytes = check_bytes(inputs, binding.backend, binding.limits)
    started = started_of(request.plan, inputs, binding, revision)
    prepared = Prepared(request_id, mode, request.plan, inputs, started, store_bytes)
    if session is not None and isinstance(request, GenerateRequest):
        prepared.session, prepared.own_plan, prepared.plans[revision] = session.id, own_plan, request.plan
        prepared.rebind = partial(_rebound, prepared, request, binding)
    return prepared


def _rebound(
    prepared: Prepared, request: GenerateRequest, binding: Binding, item: PreparedInput, session: Session
) -> list[tuple[Sequence, BoundPlan]]:
    """An input's sequences with the plans that a later revision of its session gives them."""
    request = replace(request, plan=followed(prepared.own_plan, session))
    binding = binding.running(*session.variants, *request.variants)
    found: list[tuple[Sequence, BoundPlan]] = []
    again = PreparedInput(item.item, item.tokens, item.generates, level=item.level)
    if item.sequence is not None:
        again.sequence = input_sequence(item.sequence.id, prepared.mode, request, again, binding)
        check_bytes([again], binding.backend, binding.limits)
        found.append((item.sequence, again.sequence.plan))
    if item.source is not None and item.item.name not in prepared.rows:
        source = source_sequence(item.source.id, request.plan, item, prepared.inputs, binding)
        assert source is not None
        found.append((item.source, source.plan))
    for _, plan in found:
        plan.revision = session.revision
    assert binding.variants is not None
    prepared.used[session.revision] = binding.variants.used(p.item for p in prepared.inputs)
    return found


def followed(own: Plan, session: Session) -> Plan:
    """A request's own hooks and those of its session, which apply first. Raises InvalidArgument where they clash."""
    return Plan((*own.hooks, *session.plan.hooks))


def _seed(request: GenerateRequest | RunRequest) -> int:
    if not isinstance(request, GenerateRequest):
        return 0
    seed = request.sampling.seed
    return secrets.randbits(32) if seed is None else seed


def input_sequence(
    sequence_id: str,
    mode: Mode,
    request: GenerateRequest | RunRequest | GradientsRequest,
    prepared: PreparedInput,
    binding: Binding,
    seed: int = 0,
) -> Sequence:
    """The sequence whose events the caller gets."""
    tokens, item, n_new = prepared.tokens, prepared.item, 0
    if isinstance(request, GenerateRequest):
        n_new, engine = request.sampling.max_new_tokens - 1, binding.backend.engine
        assert engine is not None
        reason = engine.reason_not_to_fit(len(tokens) + n_new + 1)
        if reason is not None:
            why = f" ({binding.info.context_note})" if binding.info.context_note else ""
            raise InvalidArgument(f"input {item.name!r} {reason}{why}; shorten the prompt or lower max_new_tokens")
    plan = binding.bound(request.plan, mode, prepared, n_new=n_new, applied_last=binding.n_own)
    sequence = Sequence(sequence_id, list(tokens), plan.prompt_length, plan, seed=seed)
    if isinstance(request, GenerateRequest):
        sequence.sampling = request.sampling
    return sequence


def _adjusted(sampling: Sampling, prepared: PreparedInput, binding: Binding) -> Adjusted | None:
    """What sampling changes in an input's logits. Raises InvalidArgument for a token or a grammar that there cannot be."""
    vocab_size, largest = binding.info.vocab_size, max((bias.token for bias in sampling.logit_bias), default=-1)
    if largest >= vocab_size:
        raise InvalidArgument(f"sampling.logit_bias has token {largest}; the vocabulary is 0 … {vocab_size - 1}")
    if not sampling.adjusts:
        return None
    matcher = None if sampling.grammar is None else binding.tokenizer.grammars.matcher(sampling.grammar)
    return Adjusted(sampling, prepared.tokens, vocab_size, matcher)


def started_of(plan: Plan, inputs: list[PreparedInput], binding: Binding, revision: int = 0) -> Started:
    """The first event: the request is accepted."""
    info, tokenizer = binding.info, binding.tokenizer
    return Started(
        request_id=binding.request_id,
        model=info.id,
        model_hash=info.model_hash,
        backend=info.backend,
        device=info.device,
        dtype=info.dtype,
        attention=info.attention,
        versions=info.versions,
        hooks=resolved(plan, inputs),
        inputs=tuple(
            InputStarted(
                p.item.name, tuple(p.tokens), tuple(tokenizer.tokens(p.tokens)), p.sequence.seed if p.sequence else 0
            )
            for p in inputs
        ),
        revision=revision,
        n_layers=info.n_layers,
        variants=() if binding.variants is None else binding.variants.used(p.item for p in inputs),
    )
