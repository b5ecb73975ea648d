"""The HTTP app: our REST routes, OpenAI's and NeuroScope's, over one `Operations`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from fastapi import FastAPI

from ...auth.access import Access
from ...auth.origins import Origin
from ...auth.proxies import NO_PROXIES, Proxies
from ...metrics import Metrics
from ...service import Operations
from ..neuroscope.routes import neuroscope_router
from ..openai.routes import openai_router
from ..openai.tokens import tokens_router
from .auth import AuthMiddleware
from .context import Api
from .cors import Cors
from .doc_examples import BODIES
from .docs import docs_router
from .errors import JsonResponse, Reception, add_error_handlers
from .guard import HostGuard, PageGuard
from .headers import SafeHeaders
from .proxies import BehindProxies
from .routes.arrays import arrays_router
from .routes.health import health_router
from .routes.inference import inference_router
from .routes.models import models_router
from .routes.regular import regular_router

__all__ = ["create_app"]


def create_app(
    operations: Operations,
    *,
    version: str,
    max_body_bytes: int = 64 << 20,
    allowed_hosts: Sequence[str] = (),
    allowed_origins: Sequence[str] = (),
    proxies: Proxies = NO_PROXIES,
    access: Access | None = None,
    metrics: Metrics | None = None,
    measure: Callable[[], Awaitable[bytes]] | None = None,
) -> FastAPI:
    """The ASGI app. `access` lets callers in (None: everybody); `measure` gives what /metrics answers.

    `max_body_bytes` bounds a request body (413 past it). `allowed_hosts` are the names that the server goes by, on top
    of loopback and of the address that a connection was made to; `*.name` stands for one label more. `allowed_origins`
    are the web pages that may send us requests and read our answers; with none, pages of other origins can do neither.
    """
    api = Api(operations, version, max_body_bytes, access or Access(), metrics or Metrics(), measure)
    app = _App(api)
    routers = (
        models_router(api),
        inference_router(api),
        arrays_router(api),
        regular_router(api),
        health_router(api),
        openai_router(api),
        tokens_router(api),
        neuroscope_router(api),
        docs_router(),
    )
    for router in routers:
        app.include_router(router)
    add_error_handlers(app)
    origins = [Origin.of(text) for text in allowed_origins]
    app.add_middleware(AuthMiddleware, access=api.access)  # each is put around the ones before it
    app.add_middleware(PageGuard, origins=origins)
    app.add_middleware(Cors, origins=origins)
    app.add_middleware(HostGuard, hosts=allowed_hosts)
    app.add_middleware(Reception, metrics=api.metrics)
    app.add_middleware(SafeHeaders)
    app.add_middleware(BehindProxies, proxies=proxies)
    return app


class _App(FastAPI):
    """FastAPI, with the schemas of bodies that our own code parses among its components."""

    def __init__(self, api: Api) -> None:
        super().__init__(
            title="probewire",
            version=api.version,
            summary="Generates text, and reads and edits what happens inside the model on the way.",
            default_response_class=JsonResponse,
            docs_url=None,  # FastAPI's own pages fetch their scripts from elsewhere; see rest_docs
            redoc_url=None,
        )
        self._api = api

    def openapi(self) -> dict[str, Any]:
        """The document behind /docs."""
        if self.openapi_schema is None:
            schema = super().openapi()
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(self._api.schemas.definitions)
            for (method, path), body in BODIES.items():
                schema["paths"][path][method]["x-example"] = {"body": body}
        return super().openapi()
