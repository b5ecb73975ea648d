"""A request made ready for the model's thread: tokens, checked plans, and the order in which inputs must run."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from ....backends.hooks.base import Backend
from ....backends.hooks.bound import BoundPlan, Mode
from ....backends.hooks.plan import bind
from ....backends.hooks.sequence import Sequence
from ....backends.model.tokenizer import Tokenizer
from ....backends.saes import Shelf
from ....protos.depth import request_at_depth
from ....protos.errors import FailedPrecondition, InvalidArgument
from ....protos.gradients import GradientsRequest
from ....protos.model import GenerateRequest, Input, InputStarted, ModelInfo, RunRequest, Started
from ....protos.sessions import Session
from ....protos.spec import Plan
from ...config import RequestLimits
from .budget import check_bytes
from .prepared import Prepared, PreparedInput, resolved
from .sources import check_hook_inputs, set_levels, set_sources, source_sequence

__all__ = [
    "input_sequence",
    "prepare_generate",
    "prepare_run",
    "started_of",
    "tokens_of",
]


SEEDS = 1 << 63
"""Input i samples with seed + i; after the largest seed comes 0."""


def prepare_generate(
    request: GenerateRequest,
    backend: Backend,
    tokenizer: Tokenizer,
    limits: RequestLimits,
    shelf: Shelf,
    *,
    request_id: str,
    session: Session | None = None,
) -> Prepared:
    """Check a generation. Raises before anything runs. `session` is what `request.session` names."""
    info = backend.info
    if backend.engine is None:
        raise FailedPrecondition(f"model {info.id} does not generate on {info.backend}: {info.generate_note}")
    if request.sampling.max_new_tokens > limits.max_new_tokens:
        raise InvalidArgument(
            f"sampling.max_new_tokens {request.sampling.max_new_tokens} is above the limit of {limits.max_new_tokens}"
        )
    return _prepare("generate", request, backend, tokenizer, limits, shelf, request_id, session)


def prepare_run(
    request: RunRequest,
    backend: Backend,
    tokenizer: Tokenizer,
    limits: RequestLimits,
    shelf: Shelf,
    *,
    request_id: str,
) -> Prepared:
    """Check a run. Raises before anything runs."""
    return _prepare("run", request, backend, tokenizer, limits, shelf, request_id, None)


def _prepare(
    mode: Mode,
    request: GenerateRequest | RunRequest,
    backend: Backend,
    tokenizer: Tokenizer,
    limits: RequestLimits,
    shelf: Shelf,
    request_id: str,
    session: Session | None,
) -> Prepared:
    request = request_at_depth(request, backend.info.n_layers)
    info, revision, own_plan = backend.info, 0, request.plan
    if session is not None:
        request, revision = replace(request, plan=followed(request.plan, session)), session.revision
    n_own = len(own_plan.hooks)
    for item in request.inputs:
        if mode == "generate" and item.prompt_length is not None:
            raise InvalidArgument(
                f"input {item.name!r}: prompt_length is for runs, which may repeat a generation; in a generation the whole "
                "input is the prompt: leave it out"
            )
    inputs = [
        PreparedInput(i, tokens_of(i, tokenizer, info, limits), mode == "generate" and not i.source_only)
        for i in request.inputs
    ]
    lengths = {p.item.name: len(p.tokens) for p in inputs}
    check_hook_inputs(request.plan, lengths)
    set_levels(inputs, request.plan.hooks)
    seed = _seed(request)
    for index, prepared in enumerate(inputs):
        if not prepared.item.source_only:
            prepared.sequence = input_sequence(
                f"{request_id}.{index}", mode, request, prepared, backend, lengths, shelf, (seed + index) % SEEDS, n_own
            )
    set_sources(request_id, request.plan, inputs, backend, lengths, shelf, n_own)
    for sequence in (s for item in inputs for s in (item.sequence, item.source) if s is not None):
        sequence.plan.revision = revision
    store_bytes = check_bytes(inputs, backend, limits)
    started = started_of(request_id, request.plan, inputs, info, tokenizer, revision)
    prepared = Prepared(request_id, mode, request.plan, inputs, started, store_bytes)
    if session is not None and isinstance(request, GenerateRequest):
        prepared.session, prepared.own_plan, prepared.plans[revision] = session.id, own_plan, request.plan
        prepared.rebind = partial(_rebound, prepared, request, backend, lengths, shelf, limits)
    return prepared


def _rebound(
    prepared: Prepared,
    request: GenerateRequest,
    backend: Backend,
    lengths: Mapping[str, int],
    shelf: Shelf,
    limits: RequestLimits,
    item: PreparedInput,
    session: Session,
) -> list[tuple[Sequence, BoundPlan]]:
    """An input's sequences with the plans that a later revision of its session gives them."""
    request, n_own = replace(request, plan=followed(prepared.own_plan, session)), len(prepared.own_plan.hooks)
    found: list[tuple[Sequence, BoundPlan]] = []
    again = PreparedInput(item.item, item.tokens, item.generates, level=item.level)
    if item.sequence is not None:
        again.sequence = input_sequence(
            item.sequence.id, prepared.mode, request, again, backend, lengths, shelf, 0, n_own
        )
        check_bytes([again], backend, limits)
        found.append((item.sequence, again.sequence.plan))
    if item.source is not None and item.item.name not in prepared.rows:
        source = source_sequence(item.source.id, request.plan, item, prepared.inputs, backend, lengths, shelf, n_own)
        assert source is not None
        found.append((item.source, source.plan))
    for _, plan in found:
        plan.revision = session.revision
    return found


def followed(own: Plan, session: Session) -> Plan:
    """A request's own hooks and those of its session, which apply first. Raises InvalidArgument where they clash."""
    return Plan((*own.hooks, *session.plan.hooks))


def _seed(request: GenerateRequest | RunRequest) -> int:
    if not isinstance(request, GenerateRequest):
        return 0
    seed = request.sampling.seed
    return secrets.randbits(32) if seed is None else seed


def tokens_of(item: Input, tokenizer: Tokenizer, info: ModelInfo, limits: RequestLimits) -> list[int]:
    """An input's tokens. Raises InvalidArgument for too many, or for a prompt length past them."""
    longest = min(limits.max_prompt_tokens, info.context_length or limits.max_prompt_tokens)
    why = f" ({info.context_note})" if info.context_note and longest == info.context_length else ""
    tokens = tokenizer.encode(item, at_most=longest, why=why)
    if item.prompt_length is not None and item.prompt_length > len(tokens):
        raise InvalidArgument(
            f"input {item.name!r}: prompt_length {item.prompt_length} is above its {len(tokens)} tokens"
        )
    return tokens


def input_sequence(
    sequence_id: str,
    mode: Mode,
    request: GenerateRequest | RunRequest | GradientsRequest,
    prepared: PreparedInput,
    backend: Backend,
    lengths: Mapping[str, int],
    shelf: Shelf,
    seed: int,
    n_own: int,
) -> Sequence:
    """The sequence whose events the caller gets."""
    tokens, item = prepared.tokens, prepared.item
    prompt_length, n_rows = item.prompt_length or len(tokens), len(tokens)
    if isinstance(request, GenerateRequest):
        prompt_length, n_rows = len(tokens), len(tokens) + request.sampling.max_new_tokens - 1
        assert backend.engine is not None
        reason = backend.engine.reason_not_to_fit(n_rows + 1)
        if reason is not None:
            why = f" ({backend.info.context_note})" if backend.info.context_note else ""
            raise InvalidArgument(f"input {item.name!r} {reason}{why}; shorten the prompt or lower max_new_tokens")
    plan = bind(
        request.plan,
        backend,
        mode=mode,
        input_name=item.name,
        tokens=tokens,
        prompt_length=prompt_length,
        n_rows=n_rows,
        input_lengths=lengths,
        shelf=shelf,
        applied_last=n_own,
    )
    sequence = Sequence(sequence_id, list(tokens), prompt_length, plan, seed=seed)
    if isinstance(request, GenerateRequest):
        sequence.sampling = request.sampling
    return sequence


def started_of(
    request_id: str, plan: Plan, inputs: list[PreparedInput], info: ModelInfo, tokenizer: Tokenizer, revision: int = 0
) -> Started:
    """The first event: the request is accepted."""
    return Started(
        request_id=request_id,
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
    )
