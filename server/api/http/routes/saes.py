"""/v1/saes: sparse autoencoders on the sites of models."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from .....protos.saes import LoadSaeRequest, SaeInfo, SaePart, SaeReceived
from .....protos.wire.codec import to_json
from ..body import offload, parsed, query, read_object
from ..context import Face, body_doc, ok
from ..errors import JsonResponse
from ..schema import object_schema
from ..stream import unless_gone

__all__ = ["saes_router"]


def saes_router(face: Face) -> APIRouter:
    """Send, load, list and unload SAEs."""
    router = APIRouter()
    schemas = face.schemas

    @router.post(
        "/v1/saes",
        tags=["saes"],
        summary="Load a sparse autoencoder in the sae-lens format onto a site of a model, for hooks to name",
        openapi_extra=body_doc(schemas.ref(LoadSaeRequest)),
        responses=ok("The SAE", ("application/json", schemas.ref(SaeInfo))),
    )
    async def load(request: Request) -> Response:
        body, size = await read_object(request, face.max_body_bytes)
        wanted = await offload(size, parsed, LoadSaeRequest, body)
        return JsonResponse(to_json(await unless_gone(request.receive, face.ask("load_sae", wanted))))

    @router.post(
        "/v1/saes/parts",
        tags=["saes"],
        summary="Send a part of an SAE's weights, where they are more than one request may hold",
        openapi_extra=body_doc(schemas.ref(SaePart)),
        responses=ok("How much is there: where to go on", ("application/json", schemas.ref(SaeReceived))),
    )
    async def send(request: Request) -> Response:
        body, size = await read_object(request, face.max_body_bytes)
        part = await offload(size, parsed, SaePart, body)
        return JsonResponse(to_json(await face.ask("send_sae", part)))

    @router.get(
        "/v1/saes",
        tags=["saes"],
        summary="Your SAEs, and those that others share",
        responses=ok("The SAEs", ("application/json", object_schema({"saes": schemas.array(SaeInfo)}))),
    )
    async def saes(request: Request, model: str = "") -> Response:
        query(request, "model")
        return JsonResponse({"saes": [to_json(item) for item in await face.ask("saes", model)]})

    @router.delete(
        "/v1/saes/{name:path}",
        tags=["saes"],
        summary="Forget an SAE; requests that run with it go on",
        responses=ok(
            "Forgotten",
            ("application/json", object_schema({"status": {"type": "string"}, "name": {"type": "string"}})),
        ),
    )
    async def unload(request: Request, name: str, model: str = "") -> Response:
        query(request, "model")
        await face.ask("unload_sae", name, model)
        return JsonResponse({"status": "unloaded", "name": name})

    return router
