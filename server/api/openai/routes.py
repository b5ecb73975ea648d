"""/v1/chat/completions and /v1/completions: OpenAI's dialect, with captures and edits in the extra field `probewire`."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ....protos.model import Input, RunRequest, Sampling, TokenizeRequest
from ....protos.spec import Hook
from ....protos.variants.use import VariantUse
from ...service import Operations, answer
from ..http.answer import Answer
from ..http.body import offload, read_object
from ..http.context import Api, body_doc, content, ok
from ..http.errors import JsonResponse
from ..http.schema import Schema, object_schema
from ..http.stream import CompletenessCheck, StreamResponse, begun, gathered, step_bytes, unless_gone
from .answer import Chunks, whole_answer
from .echo import Echo, Reading, reading
from .named_model import with_variants
from .request import COMPLETION_TOKENS, Completion, chat_completion, text_completion
from .tools import ToolUse, grammar_of_calls

__all__ = ["openai_router"]

CHAT_TOKENS = 1024
"""Most new tokens of a chat that gives no max_tokens, where the context has that much room left. OpenAI fills the whole
context; we reserve cache to the last token before a request starts, so that would crowd out everyone else."""
_CONTINUE = "Go on with the last message where it ends, instead of beginning a reply to it."
_TOOLS = (
    "Functions that the model may call, for models whose chat template reads tools. Calls are read back from its text."
)
_ECHO = "The prompt before what is generated, its tokens' log-probabilities too. With it max_tokens may be 0."


def openai_router(api: Api) -> APIRouter:
    """What the `openai` package calls, models aside."""
    router = APIRouter(tags=["openai"])

    @router.post(
        "/v1/chat/completions",
        summary="OpenAI's chat completions",
        openapi_extra=body_doc(_schema(api, chat=True)),
        responses=_answers(),
    )
    async def chat(request: Request) -> Response:
        body, size = await read_object(request, api.max_body_bytes)
        completion = await offload(size, chat_completion, body)
        completion = await unless_gone(request.receive, _named(api.operations, completion))
        if completion.tool_use is not None:
            completion = await unless_gone(
                request.receive, _told_of_tools(api.operations, completion, completion.tool_use)
            )
        if not completion.capped:
            completion = await unless_gone(request.receive, _bounded(api.operations, completion))
        return await _answered(request, api, completion)

    @router.post(
        "/v1/completions",
        summary="OpenAI's text completions",
        openapi_extra=body_doc(_schema(api, chat=False)),
        responses=_answers(),
    )
    async def complete(request: Request) -> Response:
        body, size = await read_object(request, api.max_body_bytes)
        completion = await offload(size, text_completion, body)
        completion = await unless_gone(request.receive, _named(api.operations, completion))
        return await _answered(request, api, completion)

    return router


async def _named(operations: Operations, completion: Completion) -> Completion:
    """With the variants that the model's name asks for."""
    return dataclasses.replace(completion, request=await with_variants(operations, completion.request))


async def _told_of_tools(operations: Operations, completion: Completion, use: ToolUse) -> Completion:
    """With the form in which the model calls tools. Where there is none, the worker refuses the tools."""
    asked = completion.request
    form = (await answer(operations, "tokenizer_info", asked.model)).tool_format
    if form is None or (grammar := grammar_of_calls(use, form)) is None:
        return dataclasses.replace(completion, tool_format=form)
    sampling = dataclasses.replace(asked.sampling, grammar=grammar)
    return dataclasses.replace(completion, tool_format=form, request=dataclasses.replace(asked, sampling=sampling))


async def _bounded(operations: Operations, completion: Completion) -> Completion:
    """max_tokens, where the caller gave none."""
    asked = completion.request
    info = await answer(operations, "describe", asked.model)
    room = CHAT_TOKENS
    if info.context_length:
        # A prompt that is too long for the context is refused here, one that just leaves no room by the worker.
        counted = TokenizeRequest(asked.inputs[0], asked.model, at_most=info.context_length)
        tokens = await answer(operations, "tokenize", counted)
        room = max(1, min(room, info.context_length - len(tokens.token_ids)))
    sampling = dataclasses.replace(asked.sampling, max_new_tokens=room)
    return dataclasses.replace(completion, request=dataclasses.replace(asked, sampling=sampling))


async def _answered(request: Request, api: Api, completion: Completion) -> Response:
    asked = completion.request
    if completion.echo:
        asked = reading(asked, completion.n)
    events = CompletenessCheck(
        api.operations.run(RunRequest(asked.inputs, asked.model, asked.plan, asked.variants))
        if completion.silent
        else api.operations.generate(asked),
        asked.inputs,
    )
    if completion.stream:
        return StreamResponse(await begun(request, events), Chunks(completion), step_bytes)
    batches = await gathered(request, events)
    found, echo = Answer.of(batches), None
    if completion.echo:
        read = Reading.of(found)
        found, pieces = read.rest, TokenizeRequest(Input(token_ids=read.ids), asked.model)
        echo = Echo(read, completion, await unless_gone(request.receive, api.ask("tokenize", pieces)))

    def response() -> Response:
        return JsonResponse(whole_answer(completion, found, echo))

    return await offload(sum(map(step_bytes, batches)), response)


def _response_format() -> Schema:
    text: Schema = {"type": "string"}
    named = object_schema(
        {"name": text, "description": text, "strict": {"type": "boolean"}, "schema": {"type": "object"}},
        ("name", "schema"),
    )
    plain = object_schema({"type": {"enum": ["text", "json_object"]}}, ("type",))
    schema = object_schema({"type": {"enum": ["json_schema"]}, "json_schema": named}, ("type", "json_schema"))
    return {"oneOf": [plain, schema], "description": "What the text must be. A schema is kept to, strict or not."}


def _schema(api: Api, *, chat: bool) -> Schema:
    text: Schema = {"type": "string"}
    number, integer, flag = {"type": "number"}, {"type": "integer"}, {"type": "boolean"}
    tokens: Schema = {"type": "array", "items": integer}
    strings: Schema = {"type": "array", "items": text}
    message = object_schema({"role": text, "content": {"oneOf": [text, {"type": "array", "items": {}}]}}, ("role",))
    prompt: Schema = {"oneOf": [text, strings, tokens, {"type": "array", "items": tokens}]}
    default = f"Default: {CHAT_TOKENS}, or what room the context has." if chat else f"Default: {COMPLETION_TOKENS}."
    own: dict[str, Schema] = (
        {"messages": {"type": "array", "items": message}, "logprobs": flag, "top_logprobs": integer}
        if chat
        else {"prompt": prompt, "logprobs": integer, "echo": {**flag, "description": _ECHO}}
    )
    extra = object_schema(
        {
            "hooks": {**api.schemas.array(Hook), "description": "What to read and edit in this call."},
            "session": {**text, "description": "Id of a live session; its hooks apply before these."},
            "variants": {
                **api.schemas.array(VariantUse),
                "description": "Variants to run with, behind those in model.",
            },
            "tensors": {"type": "string", "enum": ["base64", "list"], "default": "base64"},
        },
        description="Ours. The answer then has a field of the same name: started, tensors and finished.",
    )
    sampling = api.schemas.properties(Sampling)
    properties: dict[str, Schema] = {
        "model": {
            **text,
            "description": "May be left out when one model is loaded. Behind a colon variants, joined by +.",
        },
        **own,
        "max_tokens": {**integer, "description": default},
        "max_completion_tokens": {**integer, "description": "The same as max_tokens."},
        "temperature": {**number, "default": 1.0},
        "top_p": sampling["top_p"],
        "n": {**integer, "default": 1, "description": "Choices a prompt."},
        "stop": {"oneOf": [text, strings]},
        "seed": integer,
        "presence_penalty": sampling["presence_penalty"],
        "frequency_penalty": sampling["frequency_penalty"],
        "repetition_penalty": sampling["repetition_penalty"],
        "logit_bias": {"type": "object", "additionalProperties": number, "description": "Token id → −100 … 100."},
        "response_format": _response_format(),
        "stream": flag,
        "stream_options": object_schema({"include_usage": flag, "include_obfuscation": flag}),
        "probewire": extra,
    }
    if chat:
        properties |= {
            "continue_final_message": {**flag, "default": False, "description": _CONTINUE},
            "tools": {"type": "array", "items": {"type": "object"}, "description": _TOOLS},
            "tool_choice": {"oneOf": [{"enum": ["none", "auto", "required"]}, {"type": "object"}]},
            "parallel_tool_calls": {**flag, "default": True},
            "add_generation_prompt": {**flag, "description": "The opposite of continue_final_message."},
        }
    schema = object_schema(properties, ("messages",) if chat else ("prompt",))
    # Fields of OpenAI's that change nothing, or that hold the value which asks for nothing, are accepted too.
    schema["additionalProperties"] = True
    return schema


def _answers() -> dict[int | str, dict[str, Any]]:
    found = ok("OpenAI's answer", ("application/json", {"type": "object"}))
    found[200]["content"] |= content(("text/event-stream", {"type": "string"}))
    return found
