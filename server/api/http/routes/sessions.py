"""/v1/sessions and /v1/activity."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from .....protos.activity import ActivityReport
from .....protos.errors import InvalidArgument
from .....protos.sessions import CreateSessionRequest, Session, UpdateSessionRequest
from .....protos.wire.codec import to_json
from ..body import offload, parsed, query, read_object
from ..context import Face, body_doc, ok
from ..errors import JsonResponse
from ..fields import brief
from ..schema import Schema, object_schema
from ..stream import unless_gone

__all__ = ["sessions_router"]

_TEXT: Schema = {"type": "string"}


def sessions_router(face: Face) -> APIRouter:
    """Live sessions, and who is running what."""
    router = APIRouter()
    schemas = face.schemas
    one = ok("The session", ("application/json", schemas.ref(Session)))

    @router.post(
        "/v1/sessions",
        tags=["sessions"],
        summary="Make a live session: a plan that generations bound to it follow while it changes",
        openapi_extra=body_doc(_short(face, CreateSessionRequest)),
        responses=one,
    )
    async def create(request: Request) -> Response:
        body, size = await read_object(request, face.max_body_bytes)
        wanted = await offload(size, parsed, CreateSessionRequest, _long(body))
        return JsonResponse(to_json(await unless_gone(request.receive, face.ask("create_session", wanted))))

    @router.get(
        "/v1/sessions",
        tags=["sessions"],
        summary="Your sessions",
        responses=ok("The sessions", ("application/json", object_schema({"sessions": schemas.array(Session)}))),
    )
    async def sessions(request: Request) -> Response:
        query(request)
        return JsonResponse({"sessions": [to_json(session) for session in await face.ask("sessions")]})

    @router.get("/v1/sessions/{id}", tags=["sessions"], summary="One of your sessions", responses=one)
    async def session(request: Request, id: str) -> Response:  # noqa: A002 - its name in the path
        query(request)
        return JsonResponse(to_json(await face.ask("session", id)))

    @router.put(
        "/v1/sessions/{id}",
        tags=["sessions"],
        summary="Another plan for a session, for generations under way from their next step on",
        openapi_extra=body_doc(_short(face, UpdateSessionRequest)),
        responses=one,
    )
    async def update(request: Request, id: str) -> Response:  # noqa: A002 - as above
        body, size = await read_object(request, face.max_body_bytes)
        if body.setdefault("id", id) != id:
            raise InvalidArgument(f"the body is about session {brief(body['id'])}, the path about {id!r}")
        wanted = await offload(size, parsed, UpdateSessionRequest, _long(body))
        return JsonResponse(to_json(await unless_gone(request.receive, face.ask("update_session", wanted))))

    @router.delete(
        "/v1/sessions/{id}",
        tags=["sessions"],
        summary="Forget a session; generations under way keep the plan they have",
        responses=ok("Forgotten", ("application/json", object_schema({"status": _TEXT, "id": _TEXT}))),
    )
    async def delete(request: Request, id: str) -> Response:  # noqa: A002 - as above
        query(request)
        await face.ask("delete_session", id)
        return JsonResponse({"status": "deleted", "id": id})

    @router.get(
        "/v1/activity",
        tags=["operations"],
        summary="Who is running what",
        responses=ok("The activity", ("application/json", schemas.ref(ActivityReport))),
    )
    async def activity(request: Request) -> Response:
        query(request)
        return JsonResponse(to_json(await unless_gone(request.receive, face.ask("activity"))))

    return router


def _long(body: dict[str, object]) -> dict[str, object]:
    """`hooks`, short for `plan: {hooks}`, written out."""
    if (hooks := body.pop("hooks", None)) is not None:
        if body.get("plan") is not None:
            raise InvalidArgument("give plan or hooks, not both; hooks is short for plan: {hooks}")
        body["plan"] = {"hooks": hooks}
    return body


def _short(face: Face, cls: type) -> Schema:
    properties = dict(face.schemas.properties(cls))
    return object_schema({**properties, "hooks": {"type": "array", "description": "Short for plan: {hooks}."}})
