"""/v1/weights and /v1/captures: single tensors, as JSON or as a safetensors file."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from .....protos.errors import InvalidArgument
from .....protos.model import StoredCapture
from .....protos.tensors import Array
from .....protos.wire.codec import to_json
from ..body import offload, query
from ..context import Api, content, ok
from ..errors import JsonResponse
from ..formats import accepted
from ..schema import Schema, object_schema
from ..stream import unless_gone
from ..tensors import Style, array_json, safetensors_file, style_of

__all__ = ["arrays_router"]

_TEXT: Schema = {"type": "string"}
_TENSOR: dict[str, Schema] = {
    "dtype": _TEXT,
    "shape": {"type": "array", "items": {"type": "integer"}},
    "data": {"description": "Base64 of little-endian bytes, or nested lists."},
}


def arrays_router(api: Api) -> APIRouter:
    """Weights and stored captures."""
    router = APIRouter()
    operations = api.operations
    parameters = {"parameters": [_parameter("model"), _parameter("tensors")]}

    @router.get(
        "/v1/weights",
        tags=["models"],
        summary="Names and shapes of a model's weights",
        openapi_extra={"parameters": [_parameter("model")]},
        responses=ok("Shape by name", ("application/json", object_schema({"weights": {"type": "object"}}))),
    )
    async def weight_names(request: Request) -> Response:
        model = query(request, "model").get("model", "")
        found = await unless_gone(request.receive, operations.weight_names(model))
        return JsonResponse({"weights": {name: list(shape) for name, shape in found.items()}})

    @router.get(
        "/v1/weights/{name:path}",
        tags=["models"],
        summary="One weight, named and shaped as in the checkpoint",
        openapi_extra=parameters,
        responses=_tensor_answers({"name": _TEXT, **_TENSOR}),
    )
    async def weights(request: Request, name: str) -> Response:
        model, style, as_file = _wanted(request)
        tensor = await unless_gone(request.receive, operations.weights(name, model))
        return await _tensor_response(name, {"name": name}, tensor.numpy(), style, as_file)

    @router.get(
        "/v1/captures",
        tags=["captures"],
        summary="Captures kept with store",
        openapi_extra={"parameters": [_parameter("model")]},
        responses=ok(
            "The captures", ("application/json", object_schema({"captures": api.schemas.array(StoredCapture)}))
        ),
    )
    async def captures(request: Request) -> Response:
        model = query(request, "model").get("model", "")
        found = await unless_gone(request.receive, api.ask("captures", model))
        return JsonResponse({"captures": [to_json(capture) for capture in found]})

    @router.get(
        "/v1/captures/{id:path}",
        tags=["captures"],
        summary="One stored capture",
        openapi_extra=parameters,
        responses=_tensor_answers({**api.schemas.properties(StoredCapture), **_TENSOR}),
    )
    async def capture(request: Request, id: str) -> Response:  # noqa: A002 - its name in the path
        model, style, as_file = _wanted(request)
        stored, tensor = await unless_gone(request.receive, operations.capture(id, model))
        return await _tensor_response(id, to_json(stored), tensor.numpy(), style, as_file)

    @router.delete(
        "/v1/captures/{id:path}",
        tags=["captures"],
        summary="Forget a stored capture",
        openapi_extra={"parameters": [_parameter("model")]},
        responses=ok("Forgotten", ("application/json", object_schema({"status": _TEXT, "id": _TEXT}))),
    )
    async def delete_capture(request: Request, id: str) -> Response:  # noqa: A002 - its name in the path
        model = query(request, "model").get("model", "")
        await api.ask("delete_capture", id, model)
        return JsonResponse({"status": "deleted", "id": id})

    return router


def _wanted(request: Request) -> tuple[str, Style, bool]:
    """Model, style, and whether a file is asked for."""
    options = query(request, "model", "tensors")
    chosen, _ = accepted(request.headers.get("accept", ""))
    if chosen not in ("json", "safetensors"):
        raise InvalidArgument("one tensor is not a stream; accept application/json or application/safetensors")
    return options.get("model", ""), style_of(options.get("tensors")), chosen == "safetensors"


async def _tensor_response(name: str, about: dict[str, Any], array: Array, style: Style, as_file: bool) -> Response:
    def response() -> Response:
        if as_file:
            return Response(safetensors_file({name: array}, {"about": about}), media_type="application/safetensors")
        return JsonResponse({**about, **array_json(array, style)})

    return await offload(array.nbytes, response)


def _tensor_answers(properties: dict[str, Schema]) -> dict[int | str, dict[str, Any]]:
    found = ok("The tensor", ("application/json", object_schema(properties)))
    found[200]["content"] |= content(("application/safetensors", {"type": "string", "format": "binary"}))
    return found


def _parameter(name: str) -> dict[str, Any]:
    schema: Schema = {"type": "string", "enum": ["base64", "list"]} if name == "tensors" else _TEXT
    text = "How numbers stand in JSON." if name == "tensors" else "Empty: the only model loaded."
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": text}
