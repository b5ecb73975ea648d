"""The HTTP app: our REST routes, OpenAI's and NeuroScope's, over one `Operations`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from .access import Access
from .metrics import Metrics
from .neuroscope import neuroscope_router
from .openai import openai_router
from .rest_arrays import arrays_router
from .rest_door import Door
from .rest_errors import Guard, JsonResponse, add_error_handlers
from .rest_face import Face
from .rest_health import health_router
from .rest_inference import inference_router
from .rest_models import models_router
from .rest_saes import saes_router
from .rest_sessions import sessions_router
from .service import Operations

__all__ = ["create_app"]


def create_app(
    operations: Operations,
    *,
    version: str,
    max_body_bytes: int = 64 << 20,
    allowed_origins: Sequence[str] = (),
    access: Access | None = None,
    metrics: Metrics | None = None,
    measure: Callable[[], Awaitable[bytes]] | None = None,
) -> FastAPI:
    """The ASGI app. `access` lets callers in (None: everybody); `measure` gives what /metrics answers.

    `max_body_bytes` bounds a request body (413 past it). `allowed_origins` are the web pages that browsers let read
    our answers; with none, pages of other origins cannot.
    """
    face = Face(operations, version, max_body_bytes, access or Access(), metrics or Metrics(), measure)
    app = _App(face)
    routers = (
        models_router(face),
        inference_router(face),
        arrays_router(face),
        saes_router(face),
        sessions_router(face),
        health_router(face),
        openai_router(face),
        neuroscope_router(face),
    )
    for router in routers:
        app.include_router(router)
    add_error_handlers(app)
    app.add_middleware(Door, access=face.access)
    if allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(allowed_origins),
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["*"],
            expose_headers=["x-request-id", "retry-after"],
        )
    app.add_middleware(Guard, metrics=face.metrics)
    return app


class _App(FastAPI):
    """FastAPI, with the schemas of bodies that our own code parses among its components."""

    def __init__(self, face: Face) -> None:
        super().__init__(
            title="probewire",
            version=face.version,
            summary="Generates text, and reads and edits what happens inside the model on the way.",
            default_response_class=JsonResponse,
        )
        self._face = face

    def openapi(self) -> dict[str, Any]:
        """The document behind /docs."""
        if self.openapi_schema is None:
            schema = super().openapi()
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(self._face.schemas.definitions)
        return super().openapi()
