"""Routes that are made of operations' rows: arguments from a JSON body, or from path and query; the answer as JSON."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from .....protos.errors import InvalidArgument
from .....protos.operations import BY_NAME, Operation
from .....protos.wire.codec import to_json
from ..body import offload, parsed, query, read_object
from ..context import Face, body_doc, ok
from ..errors import JsonResponse
from ..schema import Schema, object_schema
from ..stream import unless_gone

__all__ = ["regular_router"]

_TEXT: Schema = {"type": "string"}
_BODIES = ("POST", "PUT")


def regular_router(face: Face) -> APIRouter:
    """One route for each row that has a summary."""
    router = APIRouter()
    for row in BY_NAME.values():
        if row.summary:
            verb, _, path = row.route.partition(" ")
            router.add_api_route(
                path,
                _serving(face, row),
                methods=[verb],
                name=row.call,
                tags=[row.name.partition(".")[0].lower()],
                summary=row.summary,
                openapi_extra=_body_of(face, row) if verb in _BODIES else None,
                responses=ok("The answer", ("application/json", _answer_of(face, row))),
            )
    return router


def _serving(face: Face, row: Operation) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        asked = await _arguments(face, row, request)
        found = await unless_gone(request.receive, face.ask(row.call, *asked))
        return JsonResponse(_told(row, found))

    return serve


async def _arguments(face: Face, row: Operation, request: Request) -> tuple[Any, ...]:
    path, wanted = dict[str, Any](request.path_params), set(row.fields) - set(request.path_params)
    if row.route.partition(" ")[0] not in _BODIES:
        given = {**query(request, *wanted), **path}
        return tuple(given.get(name, "") for name in row.fields)
    query(request)
    body, size = await read_object(request, face.max_body_bytes)
    differing = [name for name, value in path.items() if body.setdefault(name, value) != value]
    if differing:
        raise InvalidArgument(f"the body and the path name another {differing[0]}; leave it out of the body")
    if not isinstance(row.request, str):
        return (await offload(size, parsed, row.request, body),)
    unknown = sorted(set(body) - set(row.fields))
    if unknown:
        raise InvalidArgument(f"unknown fields {unknown}; allowed: {', '.join(row.fields)}")
    return tuple(body.get(name, "") for name in row.fields)


def _told(row: Operation, found: Any) -> dict[str, Any]:
    if row.kind == "list":
        return {row.listed.partition(".")[2]: [to_json(item) for item in found]}
    return {"status": "done"} if row.kind == "nothing" else to_json(found)


def _body_of(face: Face, row: Operation) -> dict[str, Any]:
    if isinstance(row.request, str):
        return body_doc(object_schema(dict.fromkeys(row.fields, _TEXT)))
    return body_doc(face.schemas.ref(row.request))


def _answer_of(face: Face, row: Operation) -> Schema:
    if row.kind == "list":
        return object_schema({row.listed.partition(".")[2]: face.schemas.array(row.answer)})
    return object_schema({"status": _TEXT}) if row.kind == "nothing" else face.schemas.ref(row.answer)
