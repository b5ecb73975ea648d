"""/tokenize and /detokenize, as vLLM has them: what lm-evaluation-harness asks where it has no tokenizer of its own."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from ....protos.errors import InvalidArgument
from ....protos.model import Input, Tokenized, TokenizeRequest
from ..http.body import offload, read_object
from ..http.context import Api, body_doc, ok
from ..http.errors import JsonResponse
from ..http.fields import Fields, is_list
from ..http.schema import Schema, object_schema
from ..http.stream import unless_gone
from .request import messages_of

__all__ = ["tokens_router"]

_TEXT: Schema = {"type": "string"}
_IDS: Schema = {"type": "array", "items": {"type": "integer"}}
_MESSAGES: Schema = {"type": "array", "items": object_schema({"role": _TEXT, "content": _TEXT}, ("role", "content"))}
_FLAG: Schema = {"type": "boolean", "default": True}


def tokens_router(api: Api) -> APIRouter:
    """Two routes beside /tokenizer_info, which is made of its operation's row."""
    router = APIRouter(tags=["openai"])

    async def asked(request: Request, size: int, wanted: Any, body: dict[str, Any]) -> Tokenized:
        made = await offload(size, wanted, body)
        return await unless_gone(request.receive, api.ask("tokenize", made))

    @router.post(
        "/tokenize",
        summary="Token ids of a text or of messages",
        openapi_extra=body_doc(
            object_schema({"model": _TEXT, "prompt": _TEXT, "messages": _MESSAGES, "add_special_tokens": _FLAG})
        ),
        responses=ok("The tokens", ("application/json", object_schema({"tokens": _IDS, "count": {"type": "integer"}}))),
    )
    async def tokenize(request: Request) -> Response:
        body, size = await read_object(request, api.max_body_bytes)
        found = await asked(request, size, _to_tokens, body)
        return JsonResponse({"tokens": list(found.token_ids), "count": len(found.token_ids)})

    @router.post(
        "/detokenize",
        summary="The text of token ids",
        openapi_extra=body_doc(object_schema({"model": _TEXT, "tokens": _IDS}, ("tokens",))),
        responses=ok("The text", ("application/json", object_schema({"prompt": _TEXT}))),
    )
    async def detokenize(request: Request) -> Response:
        body, size = await read_object(request, api.max_body_bytes)
        found = await asked(request, size, _to_text, body)
        return JsonResponse({"prompt": found.text})

    return router


def _to_tokens(body: dict[str, Any]) -> TokenizeRequest:
    fields = Fields(body)
    prompt, model = fields.optional("prompt", str), fields.take("model", str, "")
    messages = messages_of(fields) if body.get("messages") is not None else None
    special = fields.take("add_special_tokens", bool, True)
    fields.done()
    if (prompt is None) == (messages is None):
        raise InvalidArgument("give prompt, a text, or messages; not both")
    item = Input(text=prompt) if messages is None else Input(messages=messages)
    return TokenizeRequest(item, model, add_special_tokens=special)


def _to_text(body: dict[str, Any]) -> TokenizeRequest:
    fields = Fields(body)
    tokens, model = fields.raw("tokens"), fields.take("model", str, "")
    fields.done()
    if not is_list(tokens) or not tokens or not all(type(item) is int for item in tokens):
        raise InvalidArgument("tokens must be a list of at least one token id")
    return TokenizeRequest(Input(token_ids=tuple(tokens)), model)
