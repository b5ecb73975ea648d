"""GET /health and GET /metrics."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request
from starlette.responses import Response

from .....protos.loading import HealthReport
from .....protos.wire.codec import to_json
from ....metrics import MEDIA_TYPE
from ..body import query
from ..context import Api, content, ok
from ..errors import JsonResponse, of_ours
from ..schema import object_schema

__all__ = ["health_router"]

PATIENCE_S = 5.0
"""How long a probe waits for the models before it calls them not ready."""


def health_router(api: Api) -> APIRouter:
    """What machines ask."""
    router = APIRouter(tags=["operations"])
    report_schema = object_schema(
        {
            **api.schemas.properties(HealthReport),
            "status": {"type": "string", "enum": ["healthy", "unhealthy"]},
            "service": {"type": "string"},
            "version": {"type": "string"},
        }
    )

    @router.get(
        "/health",
        summary="Whether the models can serve, found by a real forward",
        responses=ok("Ready", ("application/json", report_schema))
        | {503: {"description": "Not ready", "content": content(("application/json", report_schema))}},
    )
    async def health(request: Request) -> Response:
        query(request)
        found = await asked(request, api)
        if isinstance(found, str):
            found = HealthReport(False, found)
        about = {
            "status": "healthy" if found.ready else "unhealthy",
            "service": "probewire",
            "version": api.version,
            **to_json(found),
        }
        return JsonResponse(about, 200 if found.ready else 503)

    @router.get(
        "/metrics",
        summary="Counters, as Prometheus reads them",
        responses=ok("Text", ("text/plain", {"type": "string"})),
    )
    async def metrics(request: Request) -> Response:
        query(request)
        text = api.metrics.text() if api.measure is None else await api.measure()
        return Response(text, headers={"content-type": MEDIA_TYPE})

    return router


async def asked(request: Request, api: Api) -> HealthReport | str:
    """The report, or why it could not be had in time."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            return await api.operations.health()
    except TimeoutError:
        return f"the models have not answered within {PATIENCE_S:g} s"
    except Exception as error:  # noqa: BLE001 - logged by of_ours; a probe gets an answer whatever happens
        return of_ours(error, request.scope).message
