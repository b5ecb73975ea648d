"""/v1/models and /v1/tokenize."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from .....protos.errors import Internal, InvalidArgument, PermissionDenied, ProbewireError
from .....protos.loading import HealthReport, LoadProgress, LoadRequest
from .....protos.model import Input, ModelInfo, Tokenized, TokenizeRequest
from .....protos.wire.codec import to_json
from .....protos.wire.error_body import error_to_json
from ....auth.callers import current_caller
from ...openai.named_model import variant_models
from ..body import offload, parsed, query, read_object
from ..context import Api, body_doc, content, ok
from ..errors import JsonResponse
from ..fields import Fields
from ..formats import NDJSON, dumps
from ..schema import Schema, object_schema
from ..stream import StreamResponse, begun, gathered, unless_gone

__all__ = ["models_router"]

_TEXT: Schema = {"type": "string"}


def models_router(api: Api) -> APIRouter:
    """Models and their tokenizers."""
    router = APIRouter(tags=["models"])
    operations, schemas = api.operations, api.schemas

    @router.get(
        "/v1/models",
        summary="Every loaded model",
        responses=ok(
            "OpenAI's list in `data`; `models` says what each offers; `failed` names those that could not be loaded, "
            "and why",
            (
                "application/json",
                object_schema(
                    {"object": _TEXT, "data": {}, "models": schemas.array(ModelInfo), "failed": {"type": "object"}}
                ),
            ),
        ),
    )
    async def models(request: Request) -> Response:
        query(request)
        found = await unless_gone(request.receive, api.ask("models"))
        return JsonResponse(
            {
                "object": "list",
                "data": [*(_openai_model(api, info.id) for info in found), *await _variants(api)],
                "models": [to_json(info) for info in found],
                "failed": _failed(await operations.health()),
            }
        )

    @router.post(
        "/v1/models/load",
        summary="Load a model into a worker of its own",
        openapi_extra=body_doc(_load_schema(api)),
        responses=_load_answers(api),
    )
    async def load(request: Request) -> Response:
        body, _ = await read_object(request, api.max_body_bytes)
        wanted, not_applied, stream = _load_request(body)
        progress = operations.load(wanted)
        if stream or (stream is None and NDJSON in request.headers.get("accept", "")):
            return StreamResponse(await begun(request, progress), _ProgressLines())
        last = (await gathered(request, progress))[-1:]
        if not last or last[0].info is None:
            raise Internal(f"loading {wanted.model} ended without the model's description")
        return JsonResponse(_loaded(last[0].info, not_applied))

    @router.post(
        "/v1/models/unload",
        summary="End a model's worker",
        openapi_extra=body_doc(object_schema({"model": _TEXT, "model_id": _TEXT})),
        responses=ok("Unloaded", ("application/json", object_schema({"status": _TEXT, "model": _TEXT}))),
    )
    async def unload(request: Request) -> Response:
        body, _ = await read_object(request, api.max_body_bytes)
        fields = Fields(body)
        model = _either(fields, "model", "model_id")
        fields.done()
        if not model:
            raise InvalidArgument("model is missing: name the model to unload")
        await api.ask("unload", model)
        return JsonResponse({"status": "unloaded", "model": model, "model_id": model})

    @router.get(
        "/v1/models/{model:path}",
        summary="What one model offers",
        responses=ok(
            "The model, with the fields of OpenAI's model object", ("application/json", schemas.ref(ModelInfo))
        ),
    )
    async def describe(request: Request, model: str) -> Response:
        query(request)
        info = await unless_gone(request.receive, api.ask("describe", model))
        return JsonResponse({**_openai_model(api, info.id), **to_json(info)})

    @router.post(
        "/v1/tokenize",
        summary="Tokens of an input as a request would use them",
        openapi_extra=body_doc(_tokenize_schema(api)),
        responses=ok("The tokens", ("application/json", schemas.ref(Tokenized))),
    )
    async def tokenize(request: Request) -> Response:
        body, size = await read_object(request, api.max_body_bytes)
        short = {name: body.pop(name) for name in ("text", "messages", "token_ids") if name in body}
        if short:
            if body.get("input") is not None:
                raise InvalidArgument(f"give input, or {' and '.join(short)}, not both")
            body["input"] = short
        wanted = await offload(size, parsed, TokenizeRequest, body)
        return JsonResponse(to_json(await unless_gone(request.receive, api.ask("tokenize", wanted))))

    return router


def _openai_model(api: Api, model: str) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": api.started_at, "owned_by": "probewire"}


def _failed(report: HealthReport) -> dict[str, str]:
    """Model -> why it was given up."""
    states = {name: status.partition(": ") for name, status in report.models.items()}
    return {name: reason for name, (state, _, reason) in states.items() if state == "failed"}


async def _variants(api: Api) -> list[dict[str, Any]]:
    """Variants as models whose parent is their base; none for those who may use none."""
    try:
        found = await api.ask("variants", "")
    except PermissionDenied:
        return []
    return [
        {**_openai_model(api, name), "created": int(one.created_s), "parent": one.model, "root": one.model}
        for name, one in variant_models(found, current_caller().user.name)
    ]


def _load_request(body: dict[str, Any]) -> tuple[LoadRequest, list[str], bool | None]:
    """Ours, or NeuroScope's; which fields of the latter change nothing here; and whether progress is wanted."""
    fields = Fields(body)
    stream = fields.optional("stream", bool)
    neuroscope = body.get("model_path") is not None
    model, name = _either(fields, "model", "model_path"), _either(fields, "id", "model_id")
    if not model:
        raise InvalidArgument("model is missing: the default model's name, a local folder, or a Hugging Face id")
    rest = {
        name: value for name in ("backend", "dtype", "revision", "quantize") if (value := fields.optional(name, str))
    }
    for refused in ("trust_remote_code", "vocab_only"):
        fields.only(refused, False)
    for refused in ("kv_bits", "kv_group_size", "quantized_kv_start"):
        fields.only(refused)
    # A bound on mlx-engine's rotating cache; ours is sized from the requests and never rotates.
    not_applied = ["max_kv_size"] if fields.optional("max_kv_size", int) is not None else []
    fields.done()
    if neuroscope and not name:
        name = PurePosixPath(model).name
    return LoadRequest(model=model, id=name, **rest), not_applied, stream


def _either(fields: Fields, ours: str, theirs: str) -> str:
    """A field under our name or NeuroScope's; empty when absent."""
    found = {name: value for name in (ours, theirs) if (value := fields.optional(name, str))}
    if len(set(found.values())) > 1:
        raise InvalidArgument(f"{ours} and {theirs} mean the same; give one, got {found}")
    return next(iter(found.values()), "")


def _loaded(info: ModelInfo, not_applied: list[str]) -> dict[str, Any]:
    """Our answer and NeuroScope's in one."""
    return {
        "status": "loaded",
        "model_id": info.id,
        "supports_activations": info.generate and any(site.layers for site in info.sites),
        "model": to_json(info),
        "not_applied": not_applied,
    }


class _ProgressLines:
    """LoadProgress as a JSON object a line; {"error": {…}} where the load fails."""

    media_type = NDJSON

    def item(self, item: LoadProgress) -> list[bytes]:
        """One line."""
        return [dumps(to_json(item)) + b"\n"]

    def error(self, error: ProbewireError, request_id: str) -> bytes:
        """The last line."""
        return dumps(error_to_json(error, request_id)) + b"\n"

    def end(self) -> bytes:
        """The line with `info` is the last."""
        return b""


def _load_schema(api: Api) -> Schema:
    properties = dict(api.schemas.properties(LoadRequest))
    return object_schema(
        {
            **properties,
            "stream": {"type": "boolean", "description": "Progress as JSON lines; so does Accept: " + NDJSON},
            "model_path": {**_TEXT, "description": "NeuroScope's name for model."},
            "model_id": {**_TEXT, "description": "NeuroScope's name for id; with model_path, default its last part."},
            "max_kv_size": {"type": "integer", "description": "Accepted and not applied: our cache never rotates."},
            "trust_remote_code": {"type": "boolean", "enum": [False]},
            "vocab_only": {"type": "boolean", "enum": [False]},
        }
    )


def _load_answers(api: Api) -> dict[int | str, dict[str, Any]]:
    whole = object_schema(
        {
            "status": _TEXT,
            "model_id": _TEXT,
            "supports_activations": {"type": "boolean"},
            "model": api.schemas.ref(ModelInfo),
            "not_applied": {"type": "array", "items": _TEXT},
        }
    )
    found = ok("The loaded model, or its progress", ("application/json", whole))
    found[200]["content"] |= content((NDJSON, api.schemas.ref(LoadProgress)))
    return found


def _tokenize_schema(api: Api) -> Schema:
    short = {name: api.schemas.properties(Input)[name] for name in ("text", "messages", "token_ids")}
    return object_schema({**api.schemas.properties(TokenizeRequest), **short})
