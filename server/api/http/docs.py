"""GET /docs: what the server offers, from /openapi.json. One page of ours, which asks nobody else for anything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import RedirectResponse, Response

from .headers import PAGE_HEADERS

__all__ = ["DOC_PATHS", "docs_router"]

_FILES = {
    "/docs": ("docs_page.html", "text/html"),
    "/docs/page.css": ("docs_page.css", "text/css"),
    "/docs/page.js": ("docs_page.js", "text/javascript"),
}
DOC_PATHS = frozenset({"/redoc", *_FILES})
"""They tell nothing of anybody."""


def docs_router() -> APIRouter:
    """The page and its parts. Addresses are relative, so that it works behind a proxy's prefix."""
    router = APIRouter(include_in_schema=False)
    for path, (name, media_type) in _FILES.items():
        router.add_api_route(path, _sending(name, media_type), methods=["GET", "HEAD"])

    @router.api_route("/redoc", methods=["GET", "HEAD"])
    async def redoc() -> Response:
        return RedirectResponse("docs", headers=PAGE_HEADERS)

    return router


def _sending(name: str, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return Response(
            files(__name__.rpartition(".")[0]).joinpath(name).read_bytes(), headers=PAGE_HEADERS, media_type=media_type
        )

    return send
