"""A request made ready for the model's thread: tokens, checked plans, and the order in which inputs must run."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from ..backends.base import Backend, Sequence
from ..backends.checks import from_input
from ..backends.plan import BoundHook, BoundPlan, bind, give_rows, succeed
from ..backends.tokenizer import Tokenizer
from ..protos.errors import FailedPrecondition, InvalidArgument
from ..protos.model import GenerateRequest, Input, InputStarted, ModelInfo, ResolvedHook, RunRequest, Started
from ..protos.sessions import Session
from ..protos.spec import Capture, Hook, Plan, Where
from ..protos.tensors import Array
from .config import RequestLimits
from .request_bytes import check_bytes

__all__ = ["Prepared", "PreparedInput", "prepare_generate", "prepare_run"]


@dataclass(eq=False, slots=True)
class PreparedInput:
    """One input with its bound plan(s)."""

    item: Input
    tokens: list[int]
    generates: bool
    sequence: Sequence | None = None
    """The sequence whose events the caller gets; None for an input that is a source only."""
    source: Sequence | None = None
    """The run that other inputs' hooks read."""
    level: int = 0
    """0: reads nobody; n: reads inputs of level n − 1 at most."""


@dataclass(eq=False, slots=True)
class Prepared:
    """A whole request, accepted."""

    id: str
    mode: str
    plan: Plan
    inputs: list[PreparedInput]
    started: Started
    store_bytes: int = 0
    session: str = ""
    """Id of the live session that it follows."""
    own_plan: Plan = Plan()
    """What the request asked for itself."""
    rebind: Callable[[PreparedInput, Session], list[tuple[Sequence, BoundPlan]]] | None = None
    """The plans of an input's sequences under another revision of the session."""
    plans: dict[int, Plan] = field(default_factory=dict[int, Plan])
    """Revision → what it asks for, of all revisions that it has run under."""
    rows: dict[str, dict[str, dict[int, Array]]] = field(default_factory=dict[str, dict[str, dict[int, Array]]])
    """Input → site → position → row, filled by source runs."""

    def plan_at(self, revision: int) -> Plan:
        """The whole plan of a revision."""
        return self.plans.get(revision, self.plan)

    def since(self, hook: int, revision: int) -> int:
        """The revision from which a hook has been what it is at `revision`; 0 for the request's own."""
        if hook < len(self.own_plan.hooks) or not revision:
            return 0
        found, wanted = revision, self.plan_at(revision).hooks[hook]
        for earlier in sorted((r for r in self.plans if r < revision), reverse=True):
            hooks = self.plans[earlier].hooks
            if hook >= len(hooks) or hooks[hook] != wanted:
                break
            found = earlier
        return found

    def hooks(self, revision: int) -> tuple[ResolvedHook, ...]:
        """The hooks of the revision that the sequences have now, as the caller is told."""
        return _resolved(self.plan_at(revision), self.inputs)

    def revised(self, session: Session) -> list[tuple[Sequence, BoundPlan]]:
        """Every sequence that has not ended, with its plan under a later revision. Raises when one cannot follow."""
        assert self.rebind is not None
        found: list[tuple[Sequence, BoundPlan]] = []
        for item in self.inputs:
            for sequence, plan in self.rebind(item, session):
                _give_known_rows(plan, self.rows)
                if sequence.begun:
                    succeed(sequence.plan, plan)
                found.append((sequence, plan))
        return found


def prepare_generate(
    request: GenerateRequest,
    backend: Backend,
    tokenizer: Tokenizer,
    limits: RequestLimits,
    stored: Mapping[str, Array],
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
    return _prepare("generate", request, backend, tokenizer, limits, stored, request_id, session)


def prepare_run(
    request: RunRequest,
    backend: Backend,
    tokenizer: Tokenizer,
    limits: RequestLimits,
    stored: Mapping[str, Array],
    *,
    request_id: str,
) -> Prepared:
    """Check a run. Raises before anything runs."""
    return _prepare("run", request, backend, tokenizer, limits, stored, request_id, None)


def _prepare(
    mode: str,
    request: GenerateRequest | RunRequest,
    backend: Backend,
    tokenizer: Tokenizer,
    limits: RequestLimits,
    stored: Mapping[str, Array],
    request_id: str,
    session: Session | None,
) -> Prepared:
    info, revision, own_plan = backend.info, 0, request.plan
    if session is not None:
        request, revision = replace(request, plan=followed(request.plan, session)), session.revision
    n_own = len(own_plan.hooks)
    inputs = [
        PreparedInput(i, _tokens(i, tokenizer, info, limits), mode == "generate" and not i.source_only)
        for i in request.inputs
    ]
    lengths = {p.item.name: len(p.tokens) for p in inputs}
    _check_hook_inputs(request.plan, lengths)
    _set_levels(inputs, request.plan)
    seed = _seed(request)
    for index, prepared in enumerate(inputs):
        if not prepared.item.source_only:
            prepared.sequence = _sequence(
                f"{request_id}.{index}", mode, request, prepared, backend, lengths, stored, seed + index, n_own
            )
    for index, prepared in enumerate(inputs):
        prepared.source = _source(
            f"{request_id}.{index}.source", request.plan, prepared, inputs, info, lengths, stored, n_own
        )
    for sequence in (s for item in inputs for s in (item.sequence, item.source) if s is not None):
        sequence.plan.revision = revision
    store_bytes = check_bytes(inputs, info, limits)
    started = _started(request_id, request.plan, inputs, info, tokenizer, revision)
    prepared = Prepared(request_id, mode, request.plan, inputs, started, store_bytes)
    if session is not None and isinstance(request, GenerateRequest):
        prepared.session, prepared.own_plan, prepared.plans[revision] = session.id, own_plan, request.plan
        prepared.rebind = partial(_rebound, prepared, request, backend, lengths, stored, limits)
    return prepared


def _rebound(
    prepared: Prepared,
    request: GenerateRequest,
    backend: Backend,
    lengths: Mapping[str, int],
    stored: Mapping[str, Array],
    limits: RequestLimits,
    item: PreparedInput,
    session: Session,
) -> list[tuple[Sequence, BoundPlan]]:
    """An input's sequences with the plans that a later revision of its session gives them."""
    request, n_own = replace(request, plan=followed(prepared.own_plan, session)), len(prepared.own_plan.hooks)
    found: list[tuple[Sequence, BoundPlan]] = []
    again = PreparedInput(item.item, item.tokens, item.generates, level=item.level)
    if item.sequence is not None:
        again.sequence = _sequence(item.sequence.id, prepared.mode, request, again, backend, lengths, stored, 0, n_own)
        check_bytes([again], backend.info, limits)
        found.append((item.sequence, again.sequence.plan))
    if item.source is not None and item.item.name not in prepared.rows:
        source = _source(item.source.id, request.plan, item, prepared.inputs, backend.info, lengths, stored, n_own)
        assert source is not None
        found.append((item.source, source.plan))
    for _, plan in found:
        plan.revision = session.revision
    return found


def followed(own: Plan, session: Session) -> Plan:
    """A request's own hooks and those of its session, which apply first. Raises InvalidArgument where they clash."""
    return Plan((*own.hooks, *session.plan.hooks))


def _give_known_rows(plan: BoundPlan, rows: dict[str, dict[str, dict[int, Array]]]) -> None:
    for bound in plan.hooks:
        if bound.needs is not None and (found := rows.get(bound.needs[0])) is not None:
            give_rows(bound, [found[str(site)] for site in bound.sites])


def _seed(request: GenerateRequest | RunRequest) -> int:
    if not isinstance(request, GenerateRequest):
        return 0
    seed = request.sampling.seed
    return secrets.randbits(32) if seed is None else seed


def _tokens(item: Input, tokenizer: Tokenizer, info: ModelInfo, limits: RequestLimits) -> list[int]:
    tokens = tokenizer.encode(item)
    longest = min(limits.max_prompt_tokens, info.context_length or limits.max_prompt_tokens)
    if len(tokens) > longest:
        raise InvalidArgument(f"input {item.name!r} has {len(tokens)} tokens; at most {longest} are allowed")
    if item.prompt_length is not None and item.prompt_length > len(tokens):
        raise InvalidArgument(
            f"input {item.name!r}: prompt_length {item.prompt_length} is above its {len(tokens)} tokens"
        )
    return tokens


def _check_hook_inputs(plan: Plan, lengths: Mapping[str, int]) -> None:
    for index, hook in enumerate(plan.hooks):
        unknown = [name for name in hook.inputs or () if name not in lengths]
        if unknown:
            raise InvalidArgument(
                f"hook {index} ({hook.site}): no inputs {unknown} in this request; it has {list(lengths)}"
            )


def _applies(hook: Hook, name: str) -> bool:
    """The rule of backends/plan.bind: a source is never patched with itself."""
    reads = from_input(hook.edit)
    return name in hook.inputs if hook.inputs is not None else reads is None or reads.input != name


def _set_levels(inputs: list[PreparedInput], plan: Plan) -> None:
    reads = {
        p.item.name: {r.input for h in plan.hooks if (r := from_input(h.edit)) is not None and _applies(h, p.item.name)}
        for p in inputs
    }
    by_name = {p.item.name: p for p in inputs}
    for _ in inputs:
        for name, sources in reads.items():
            levels = [by_name[s].level + 1 for s in sources if s in by_name]
            by_name[name].level = max([0, *levels])
    if any(p.level >= len(inputs) for p in inputs) and len(inputs) > 0:
        raise InvalidArgument(f"inputs read each other in a circle: { {n: sorted(s) for n, s in reads.items() if s} }")


def _sequence(
    sequence_id: str,
    mode: str,
    request: GenerateRequest | RunRequest,
    prepared: PreparedInput,
    backend: Backend,
    lengths: Mapping[str, int],
    stored: Mapping[str, Array],
    seed: int,
    n_own: int,
) -> Sequence:
    tokens, item = prepared.tokens, prepared.item
    prompt_length, n_rows = item.prompt_length or len(tokens), len(tokens)
    if isinstance(request, GenerateRequest):
        prompt_length, n_rows = len(tokens), len(tokens) + request.sampling.max_new_tokens - 1
        assert backend.engine is not None
        reason = backend.engine.reason_not_to_fit(n_rows + 1)
        if reason is not None:
            raise InvalidArgument(f"input {item.name!r} {reason}; shorten the prompt or lower max_new_tokens")
    plan = bind(
        request.plan,
        backend.info,
        mode="generate" if mode == "generate" else "run",
        input_name=item.name,
        tokens=tokens,
        prompt_length=prompt_length,
        n_rows=n_rows,
        input_lengths=lengths,
        stored=stored,
        applied_last=n_own,
    )
    sequence = Sequence(sequence_id, list(tokens), prompt_length, plan, seed=seed)
    if isinstance(request, GenerateRequest):
        sequence.sampling = request.sampling
    return sequence


def _source(
    sequence_id: str,
    plan: Plan,
    prepared: PreparedInput,
    inputs: list[PreparedInput],
    info: ModelInfo,
    lengths: Mapping[str, int],
    stored: Mapping[str, Array],
    n_own: int,
) -> Sequence | None:
    """The run of an input that other inputs read: its own hooks, and captures of the rows they need."""
    name, wanted = prepared.item.name, dict[str, set[int]]()
    for other in inputs:
        for bound in _hooks_of(other):
            if bound.needs is not None and bound.needs[0] == name:
                for site in bound.sites:
                    wanted.setdefault(str(site), set()).update(bound.needs[1])
    if not wanted:
        return None
    extra = tuple(
        Hook(site, capture=Capture(), where=Where(positions=tuple(sorted(positions))))
        for site, positions in wanted.items()
    )
    edits = tuple(
        replace(hook, capture=None, inputs=(name,))
        for hook in (*plan.hooks[n_own:], *plan.hooks[:n_own])
        if hook.edit is not None and _applies(hook, name)
    )
    tokens = prepared.tokens
    length = prepared.item.prompt_length or len(tokens)
    bound = bind(
        Plan((*edits, *extra)),
        info,
        mode="run",
        input_name=name,
        tokens=tokens,
        prompt_length=length,
        n_rows=len(tokens),
        input_lengths=lengths,
        stored=stored,
    )
    return Sequence(sequence_id, list(tokens), length, bound)


def _hooks_of(prepared: PreparedInput) -> list[BoundHook]:
    return [b for s in (prepared.sequence, prepared.source) if s is not None for b in s.plan.hooks]


def _started(
    request_id: str, plan: Plan, inputs: list[PreparedInput], info: ModelInfo, tokenizer: Tokenizer, revision: int
) -> Started:
    return Started(
        request_id=request_id,
        model=info.id,
        model_hash=info.model_hash,
        backend=info.backend,
        device=info.device,
        dtype=info.dtype,
        attention=info.attention,
        versions=info.versions,
        hooks=_resolved(plan, inputs),
        inputs=tuple(
            InputStarted(
                p.item.name, tuple(p.tokens), tuple(tokenizer.tokens(p.tokens)), p.sequence.seed if p.sequence else 0
            )
            for p in inputs
        ),
        revision=revision,
    )


def _resolved(plan: Plan, inputs: list[PreparedInput]) -> tuple[ResolvedHook, ...]:
    return tuple(
        ResolvedHook(index, hook.id or f"hook{index}", tuple(str(site) for site in bound.sites))
        for index, hook in enumerate(plan.hooks)
        if (bound := _bound(inputs, index)) is not None
    )


def _bound(inputs: list[PreparedInput], index: int) -> BoundHook | None:
    for prepared in inputs:
        if prepared.sequence is not None:
            for bound in prepared.sequence.plan.hooks:
                if bound.index == index:
                    return bound
    return None
