"""Routes that are made of operations' rows: arguments from a JSON body, or from path and query; the answer as JSON."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from inspect import Parameter, Signature
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from .....protos.errors import InvalidArgument
from .....protos.operations import BY_NAME, Operation
from .....protos.wire.codec import to_json
from ..body import offload, parsed, query, read_object
from ..context import Api, body_doc, ok
from ..errors import JsonResponse
from ..fields import brief
from ..schema import Schema, object_schema
from ..stream import unless_gone

__all__ = ["regular_router"]

_TEXT: Schema = {"type": "string"}
_BODIES = ("POST", "PUT")
_TAGS = {"activity": "operations"}
_DONE = {"Delete": "deleted", "Unload": "unloaded"}
"""What is said of what has no other answer."""


def regular_router(api: Api) -> APIRouter:
    """One route for each row that has a summary; those that compute are in inference.py."""
    router = APIRouter()
    for row in BY_NAME.values():
        if row.summary and not row.counted:
            verb, _, path = row.route.partition(" ")
            tag = row.name.partition(".")[0].lower()
            router.add_api_route(
                path,
                _serving(api, row, verb, re.findall(r"\{(\w+)", path)),
                methods=[verb],
                name=row.call if verb == "GET" else row.method.lower(),
                tags=[_TAGS.get(tag, tag)],
                summary=row.summary,
                openapi_extra=body_doc(_body_of(api, row)) if verb in _BODIES else None,
                responses=ok(row.returns, ("application/json", _answer_of(api, row))),
            )
    return router


def _serving(api: Api, row: Operation, verb: str, in_path: list[str]) -> Callable[..., Awaitable[Response]]:
    in_query = [] if verb in _BODIES else [name for name in row.fields if name not in in_path]

    async def serve(request: Request, **given: str) -> Response:
        query(request, *in_query)
        asked = await _from_body(api, row, request, given) if verb in _BODIES else [given[name] for name in row.fields]
        if row.kind == "nothing":  # begun is done, whether or not the caller stays
            await api.ask(row.call, *asked)
            return JsonResponse({"status": _DONE.get(row.method, "done"), **{name: given[name] for name in in_path}})
        found = await unless_gone(request.receive, api.ask(row.call, *asked))
        return JsonResponse(_told(row, found))

    serve.__signature__ = Signature(  # FastAPI reads it
        [
            Parameter("request", Parameter.POSITIONAL_OR_KEYWORD, annotation=Request),
            *(Parameter(name, Parameter.KEYWORD_ONLY, annotation=str) for name in in_path),
            *(Parameter(name, Parameter.KEYWORD_ONLY, annotation=str, default="") for name in in_query),
        ],
        return_annotation=Response,
    )
    return serve


async def _from_body(api: Api, row: Operation, request: Request, in_path: dict[str, str]) -> list[Any]:
    body, size = await read_object(request, api.max_body_bytes)
    for name, value in in_path.items():
        if body.setdefault(name, value) != value:
            raise InvalidArgument(
                f"the body names {name} {brief(body[name])}, the path {value!r}; leave it out of the body"
            )
    if not isinstance(row.request, str):
        return [await offload(size, parsed, row.request, _long(row.request, body))]
    unknown = sorted(set(body) - set(row.fields))
    if unknown:
        raise InvalidArgument(f"unknown fields {unknown}; allowed: {', '.join(row.fields)}")
    return [body.get(name, "") for name in row.fields]


def _long(request: type[Any], body: dict[str, Any]) -> dict[str, Any]:
    """`hooks`, short for `plan: {hooks}`, written out."""
    if _has_plan(request) and (hooks := body.pop("hooks", None)) is not None:
        if body.get("plan") is not None:
            raise InvalidArgument("give plan or hooks, not both; hooks is short for plan: {hooks}")
        body["plan"] = {"hooks": hooks}
    return body


def _has_plan(request: type[Any]) -> bool:
    return "plan" in request.__dataclass_fields__


def _told(row: Operation, found: Any) -> dict[str, Any]:
    if row.kind == "list":
        return {row.listed.partition(".")[2]: [to_json(item) for item in found]}
    return to_json(found)


def _body_of(api: Api, row: Operation) -> Schema:
    if isinstance(row.request, str):
        return object_schema(dict.fromkeys(row.fields, _TEXT))
    if not _has_plan(row.request):
        return api.schemas.ref(row.request)
    short: Schema = {"type": "array", "description": "Short for plan: {hooks}."}
    return object_schema({**api.schemas.properties(row.request), "hooks": short})


def _answer_of(api: Api, row: Operation) -> Schema:
    if row.kind == "list":
        return object_schema({row.listed.partition(".")[2]: api.schemas.array(row.answer)})
    if row.kind == "nothing":
        return object_schema(dict.fromkeys(("status", *re.findall(r"\{(\w+)", row.route)), _TEXT))
    return api.schemas.ref(row.answer)
