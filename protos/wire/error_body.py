"""An error as JSON, `{"error": {…}}`: the same on every HTTP API, in the shape that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ..errors import Code, Internal, ProbewireError, error_from_code

__all__ = ["error_from_json", "error_to_json"]

_TYPES = {
    Code.RESOURCE_EXHAUSTED: "rate_limit_error",
    Code.CANCELLED: "server_error",
    Code.DEADLINE_EXCEEDED: "server_error",
    Code.INTERNAL: "server_error",
    Code.UNAVAILABLE: "server_error",
}


def error_to_json(error: ProbewireError, request_id: str | None = None) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`; `retry_after_s` and `request_id` where there are any."""
    body: dict[str, Any] = {
        "message": error.message,
        "type": _TYPES.get(error.code, "invalid_request_error"),
        "param": None,
        "code": error.code.name,
    }
    if error.retry_after_s is not None:
        body["retry_after_s"] = error.retry_after_s
    if request_id is not None:
        body["request_id"] = request_id
    return {"error": body}


def error_from_json(body: object, otherwise: Code = Code.INTERNAL) -> ProbewireError:
    """The exception that `body` tells of. Something else than our shape (a proxy's page) becomes `otherwise`."""
    fields = _mapping(_mapping(body).get("error"))
    if not fields:
        return error_from_code(otherwise, f"the server answered with something that is not ours: {str(body)[:200]}")
    name, message, retry = fields.get("code"), str(fields.get("message", "")), fields.get("retry_after_s")
    code = Code.__members__.get(name, otherwise) if isinstance(name, str) else otherwise
    retry_after_s = float(retry) if isinstance(retry, (int, float)) else None
    if not message:
        return Internal("the server sent an error without a message")
    return error_from_code(code, message, retry_after_s)


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
