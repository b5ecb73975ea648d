"""NeuroScope's dialect: generation with activations, registered hooks, and patching."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ....protos.errors import FailedPrecondition, InvalidArgument, NotFound
from ....protos.model import GenerateRequest, Input, ModelInfo, RunRequest
from ....protos.spec import Hook, Plan
from ....protos.variants.use import VariantUse
from ....protos.wire.assemble import AssembledCapture
from ...auth.callers import current_caller
from ...auth.users import LOCAL
from ..http.answer import Answer
from ..http.body import offload, query, read_object
from ..http.context import Api, body_doc, ok
from ..http.errors import JsonResponse
from ..http.fields import Fields
from ..http.schema import object_schema
from ..http.stream import CompletenessCheck, StreamResponse, begun, gathered, step_bytes, unless_gone
from ..openai.answer import usage_json
from ..openai.named_model import base_and_variants
from ..openai.request import messages_of, sampling_of, untouched
from .answer import ActivationLines, Source, activations_of, choice_of
from .docs import MAX_TOKENS, TEMPERATURE, TOP_P, chat_answers, chat_schema, hooks_schema, patch_schema
from .hooks import NeuroHook, Registry, hooks_of, plan_hooks
from .patch import BASELINE, PROMPT, edit_hooks, interventions_of, mean_hooks, means_of

__all__ = ["caller_of", "neuroscope_router"]


def caller_of(request: Request) -> str:
    """Whose registered hooks these are: the user's; without users the address's, and what it calls itself in `x-client-id`."""
    user = current_caller().user
    if user is not LOCAL:
        return user.name
    name = request.headers.get("x-client-id", "")
    if len(name) > 128:
        raise InvalidArgument(f"x-client-id has {len(name)} characters; at most 128 are allowed")
    return f"{request.client.host if request.client else ''}/{name}"


def neuroscope_router(api: Api) -> APIRouter:
    """What NeuroScope's clients call, models and health aside."""
    router = APIRouter(tags=["neuroscope"])
    registry = Registry()

    @router.post(
        "/v1/chat/completions/with_activations",
        summary="A chat completion with the activations that NeuroScope's hooks name",
        openapi_extra=body_doc(chat_schema()),
        responses=chat_answers(),
    )
    async def with_activations(request: Request) -> Response:
        body, _ = await read_object(request, api.max_body_bytes)
        fields = Fields(body)
        item = Input(messages=messages_of(fields))
        sampling, _ = sampling_of(fields, max_tokens=MAX_TOKENS, temperature=TEMPERATURE, top_p=TOP_P)
        model, stream = fields.take("model", str, ""), fields.take("stream", bool, False)
        sent = hooks_of(fields.raw("activation_hooks"), "activation_hooks")
        fields.only("n", 1)
        untouched(fields)
        fields.done()
        model, variants = await unless_gone(request.receive, base_and_variants(api.operations, model))
        hooks, _ = await _checked(request, api, registry, sent, model)
        plan, sources = plan_hooks(hooks)
        wanted = GenerateRequest((item,), model, Plan(tuple(plan)), sampling, variants=variants)
        events = CompletenessCheck(api.operations.generate(wanted), wanted.inputs)
        if stream:
            return StreamResponse(await begun(request, events), ActivationLines(sources), step_bytes)
        batches = await gathered(request, events)
        return await offload(sum(map(step_bytes, batches)), lambda: _whole(Answer.of(batches), sources))

    @router.post(
        "/v1/activations/hooks",
        summary="Register hooks for this caller's later calls that send none",
        openapi_extra=body_doc(hooks_schema()),
        responses=ok("Registered", ("application/json", {"type": "object"})),
    )
    async def register(request: Request) -> Response:
        fields = Fields((await read_object(request, api.max_body_bytes))[0])
        hooks, model = hooks_of(fields.raw("hooks"), "hooks"), fields.take("model", str, "")
        fields.done()
        if not hooks:
            raise InvalidArgument("hooks is empty; send at least one, or DELETE to clear them")
        model, _ = await unless_gone(request.receive, base_and_variants(api.operations, model))
        info = await _described(request, api, model)
        for hook in hooks:
            if info is not None:
                hook.check(info)
        registry.add(caller_of(request), model, hooks)
        return JsonResponse({"status": "hooks_registered", "registered_hooks": [hook.hook_id for hook in hooks]})

    @router.delete(
        "/v1/activations/hooks",
        summary="Forget this caller's hooks",
        openapi_extra=body_doc(object_schema({"model": {"type": "string"}}), required=False)
        | {"parameters": [{"name": "model", "in": "query", "required": False, "schema": {"type": "string"}}]},
        responses=ok("Cleared", ("application/json", {"type": "object"})),
    )
    async def clear(request: Request) -> Response:
        named = query(request, "model").get("model", "")
        fields = Fields((await read_object(request, api.max_body_bytes, optional=True))[0])
        model = fields.take("model", str, named)
        fields.done()
        model, _ = await unless_gone(request.receive, base_and_variants(api.operations, model))
        registry.clear(caller_of(request), model)
        return JsonResponse({"status": "hooks_cleared"})

    @router.post(
        "/v1/activations/patch",
        summary="Generate from a prompt with interventions, and from a baseline without",
        openapi_extra=body_doc(patch_schema()),
        responses=ok("Both texts", ("application/json", {"type": "object"})),
    )
    async def patch(request: Request) -> Response:
        body, _ = await read_object(request, api.max_body_bytes)
        return await _patched(request, api, registry, Fields(body))

    return router


async def _described(request: Request, api: Api, model: str) -> ModelInfo | None:
    """The model, or None when none is named and there is not exactly one."""
    try:
        return await unless_gone(request.receive, api.ask("describe", model))
    except (NotFound, InvalidArgument, FailedPrecondition):
        if model:
            raise
        return None


async def _checked(
    request: Request, api: Api, registry: Registry, sent: tuple[NeuroHook, ...], model: str
) -> tuple[tuple[NeuroHook, ...], ModelInfo]:
    """The hooks of a call, each one that the model can serve: those sent, else those registered. And the model."""
    info = await unless_gone(request.receive, api.ask("describe", model))
    hooks = sent or registry.of(caller_of(request), model or info.id)
    for hook in hooks:
        hook.check(info)
    return hooks, info


def _whole(answer: Answer, sources: list[Source]) -> Response:
    (finished,) = answer.finished
    return JsonResponse(
        {
            "model": answer.started.model,
            "choices": [choice_of(answer, finished)],
            "usage": usage_json([finished.usage], [finished.usage]),
            "activations": _every_hook(sources) | activations_of(answer.captures, sources),
        }
    )


def _every_hook(sources: list[Source]) -> dict[str, list[Any]]:
    return {hook.hook_id: [] for hook, _ in sources}


async def _patched(request: Request, api: Api, registry: Registry, fields: Fields) -> Response:
    prompt, baseline = fields.required("prompt", str), fields.optional("baseline_prompt", str)
    interventions = interventions_of(fields.raw("interventions"))
    # Greedy unless asked: two texts are compared, and sampling noise would be taken for an effect.
    sampling, _ = sampling_of(fields, max_tokens=MAX_TOKENS, temperature=0.0)
    model = fields.take("model", str, "")
    sent = hooks_of(fields.raw("activation_hooks"), "activation_hooks")
    fields.only("stream", False)
    untouched(fields)
    fields.done()
    if baseline is None:
        if any(item.type == "activation_patching" for item in interventions):
            raise InvalidArgument("activation_patching takes rows from baseline_prompt, which is missing")
        baseline = prompt
    model, variants = await unless_gone(request.receive, base_and_variants(api.operations, model))
    hooks, info = await _checked(request, api, registry, sent, model)
    for item in interventions:
        item.place.check(info)
    means = means_of(await _means(request, api, mean_hooks(interventions), baseline, model, variants))
    edits = edit_hooks(interventions, means, sampling.seed or 0)
    captures, sources = plan_hooks(hooks, inputs=(PROMPT,))
    wanted = GenerateRequest(
        (Input(text=prompt, name=PROMPT), Input(text=baseline, name=BASELINE)),
        model,
        Plan((*edits, *captures)),  # captures last: they see the values as edited
        sampling,
        variants=variants,
    )
    batches = await gathered(request, CompletenessCheck(api.operations.generate(wanted), wanted.inputs))

    def response() -> Response:
        answer = Answer.of(batches)
        finished = {event.input: event for event in answer.finished}
        usages = [event.usage for event in answer.finished]
        return JsonResponse(
            {
                "model": answer.started.model,
                "choices": [choice_of(answer, finished[PROMPT])],
                "baseline_choices": [choice_of(answer, finished[BASELINE])],
                "usage": usage_json(usages, usages),
                "activations": _every_hook(sources) | activations_of(answer.captures, sources, len(edits)),
            }
        )

    return await offload(sum(map(step_bytes, batches)), response)


async def _means(
    request: Request, api: Api, hooks: list[Hook], baseline: str, model: str, variants: tuple[VariantUse, ...]
) -> tuple[AssembledCapture, ...]:
    if not hooks:
        return ()
    wanted = RunRequest((Input(text=baseline, name=BASELINE),), model, Plan(tuple(hooks)), variants=variants)
    events = CompletenessCheck(api.operations.run(wanted), wanted.inputs)
    return Answer.of(await gathered(request, events)).captures
