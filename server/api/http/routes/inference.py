"""POST /v1/generate, /v1/run, /v1/gradients and /v1/sweep."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from .....protos.errors import InvalidArgument
from .....protos.metrics import Measured, Target
from .....protos.model import Event, Finished, Input, Revised, Started, TensorFrame, Token
from .....protos.operations import COMPUTED, Operation
from .....protos.service import InferenceRequest
from .....protos.spec import Hook
from .....protos.sweeps import SweepRequest
from ....service import compute
from ..answer import Answer
from ..body import offload, parsed, read_object
from ..context import Api, body_doc, content, ok
from ..errors import JsonResponse
from ..fields import Fields
from ..formats import NDJSON, PROTOBUF, STREAMS, Delimited, Format, JsonLines, ServerSentEvents, chosen_format
from ..schema import Schema, object_schema
from ..stream import CompletenessCheck, Encoding, StreamResponse, begun, gathered, step_bytes
from ..tensors import Style, style_of

__all__ = ["inference_router"]

_INPUT_FIELDS = ("text", "messages", "token_ids")


@dataclass(frozen=True, slots=True)
class _Options:
    """How the caller wants the answer."""

    format: Format
    style: Style


def inference_router(api: Api) -> APIRouter:
    """The operations that run a model."""
    router = APIRouter(tags=["inference"])
    for cls, row in COMPUTED.items():
        schema = body_doc(_body_schema(api, cls))
        serve = _serving(api, row, cls)
        route = router.post(
            f"/v1/{row.call}", name=row.call, summary=row.summary, openapi_extra=schema, responses=_answers(api)
        )
        route(serve)
    return router


def _serving(api: Api, row: Operation, cls: type[InferenceRequest]) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        value, options = await _decoded(request, api, cls)
        return await _answered(request, CompletenessCheck(compute(api.operations, row, value), value.inputs), options)

    return serve


async def _decoded(request: Request, api: Api, cls: type[InferenceRequest]) -> tuple[InferenceRequest, _Options]:
    body, size = await read_object(request, api.max_body_bytes)
    how = Fields({name: body.pop(name) for name in ("format", "stream") if name in body})
    options = _Options(
        chosen_format(request.headers.get("accept", ""), how.optional("format", str), how.optional("stream", bool)),
        style_of(body.pop("tensors", None)),
    )
    return await offload(size, parsed, cls, _long_form(body, "base" if cls is SweepRequest else "plan")), options


def _long_form(body: dict[str, Any], plan: str) -> dict[str, Any]:
    """The short form for one input (`text`, `messages` or `token_ids`), `hooks` and `metric` written out."""
    short = {name: body.pop(name) for name in _INPUT_FIELDS if name in body}
    if short:
        if body.get("inputs") is not None:
            raise InvalidArgument(f"give inputs, or {' and '.join(short)} for a single input, not both")
        body["inputs"] = [short]
    if (hooks := body.pop("hooks", None)) is not None:
        if body.get(plan) is not None:
            raise InvalidArgument(f"give {plan} or hooks, not both; hooks is short for {plan}: {{hooks}}")
        body[plan] = {"hooks": hooks}
    if (metric := body.pop("metric", None)) is not None:
        if body.get("targets") is not None:
            raise InvalidArgument("give targets or metric, not both; metric is short for targets: [{metric}]")
        body["targets"] = [{"metric": metric}]
    return body


async def _answered(request: Request, events: AsyncIterator[list[Event]], options: _Options) -> Response:
    if options.format in STREAMS:
        return StreamResponse(await begun(request, events), _encoding(options), step_bytes)
    batches = await gathered(request, events)
    return await offload(sum(map(step_bytes, batches)), _whole, batches, options)


def _whole(batches: list[list[Event]], options: _Options) -> Response:
    answer = Answer.of(batches)
    if options.format == "safetensors":
        return Response(answer.safetensors(), media_type="application/safetensors")
    return JsonResponse(answer.json(options.style))


def _encoding(options: _Options) -> Encoding[list[Event]]:
    if options.format == "protobuf":
        return Delimited()
    return ServerSentEvents(options.style) if options.format == "sse" else JsonLines(options.style)


def _body_schema(api: Api, cls: type) -> Schema:
    schemas = api.schemas
    long = schemas.properties(cls)
    one_input = schemas.properties(Input)
    plan = "base" if cls is SweepRequest else "plan"
    extras: dict[str, Schema] = {
        **{name: {**one_input[name], "description": "Short for a single input."} for name in _INPUT_FIELDS},
        "hooks": {**schemas.array(Hook), "description": f"Short for {plan}.hooks."},
        "format": {
            "type": "string",
            "enum": ["json", "safetensors", "sse", "ndjson", "protobuf"],
            "description": "How the answer looks; wins over the Accept header.",
        },
        "stream": {"type": "boolean", "description": "true: server-sent events, unless another stream is asked for."},
        "tensors": {"type": "string", "enum": ["base64", "list"], "default": "base64"},
    }
    if "targets" in long:
        metric = schemas.properties(Target)["metric"]
        extras["metric"] = {**metric, "description": "Short for a single target of every input."}
    return object_schema({**long, **extras}, (), f"{cls.__doc__} Either inputs, or one of text, messages, token_ids.")


def _answers(api: Api) -> dict[int | str, dict[str, Any]]:
    schemas = api.schemas
    tensor = object_schema(
        {
            "input": {"type": "string"},
            "hook": {"type": "integer"},
            "id": {"type": "string"},
            "site": {"type": "string"},
            "part": {"type": "string"},
            "positions": {"type": "array", "items": {"type": "integer"}},
            "dtype": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer"}},
            "data": {},
        }
    )
    whole = object_schema(
        {
            "started": schemas.ref(Started),
            "text": {"type": "object", "additionalProperties": {"type": "string"}, "description": "By input."},
            "tokens": schemas.array(Token),
            "measured": schemas.array(Measured),
            "tensors": {"type": "array", "items": tensor},
            "finished": schemas.array(Finished),
        }
    )
    line = object_schema(
        {
            "started": schemas.ref(Started),
            "token": schemas.ref(Token),
            "tensor_frame": schemas.ref(TensorFrame),
            "revised": schemas.ref(Revised),
            "measured": schemas.ref(Measured),
            "finished": schemas.ref(Finished),
        }
    )
    binary: Schema = {"type": "string", "format": "binary"}
    found = ok("The whole answer, or a stream of its events", ("application/json", whole))
    found[200]["content"] |= content(
        ("application/safetensors", binary),
        ("text/event-stream", {"type": "string"}),
        (NDJSON, line),
        (PROTOBUF, binary),
    )
    return found
