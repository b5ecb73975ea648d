"""OpenAI's fields that change what may be sampled: penalties, `logit_bias` and `response_format`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from ....protos.errors import InvalidArgument
from ....protos.generation.sampling import Grammar, TokenBias
from ..http.fields import Fields, brief
from ..http.formats import dumps

__all__ = ["constraints_of"]


def constraints_of(fields: Fields) -> dict[str, Any]:
    """Fields of `Sampling`; `repetition_penalty` is vLLM's."""
    return {
        "presence_penalty": fields.take("presence_penalty", float, 0.0),
        "frequency_penalty": fields.take("frequency_penalty", float, 0.0),
        "repetition_penalty": fields.take("repetition_penalty", float, 1.0),
        "logit_bias": _biases(fields),
        "grammar": _grammar(fields),
    }


def _biases(fields: Fields) -> tuple[TokenBias, ...]:
    """`logit_bias`: an object from token ids, as JSON's texts, to numbers."""
    raw = fields.raw("logit_bias")
    if raw is None:
        return ()
    if not isinstance(raw, Mapping):
        raise InvalidArgument(f"logit_bias must be an object of token ids and numbers, got {brief(raw)}")
    return tuple(_bias(token, bias) for token, bias in cast("Mapping[str, Any]", raw).items())


def _bias(token: str, bias: Any) -> TokenBias:
    if not (token.isascii() and token.isdigit() and len(token) < 12):
        raise InvalidArgument(f"logit_bias has the key {brief(token)}; keys are token ids, as /tokenize tells them")
    return TokenBias(int(token), bias)


def _grammar(fields: Fields) -> Grammar | None:
    """`response_format`: text, a JSON object, or JSON of a schema. A schema is kept to whether it says `strict` or not."""
    raw = fields.raw("response_format")
    if raw is None:
        return None
    form = Fields(raw, "response_format")
    kind = form.required("type", str)
    if kind == "text":
        form.done()
        return None
    if kind == "json_object":
        form.done()
        return Grammar("json_schema", '{"type": "object"}')
    if kind != "json_schema":
        raise InvalidArgument(f"response_format.type is {brief(kind)}; allowed: text, json_object, json_schema")
    named = Fields(form.raw("json_schema"), "response_format.json_schema")
    named.required("name", str)
    named.optional("description", str)
    named.optional("strict", bool)
    schema = named.raw("schema")
    named.done()
    form.done()
    if not isinstance(schema, Mapping):
        raise InvalidArgument(f"response_format.json_schema.schema must be a JSON schema, got {brief(schema)}")
    try:
        return Grammar("json_schema", dumps(schema).decode())
    except TypeError as error:  # nested past what JSON is written to
        raise InvalidArgument(f"response_format.json_schema.schema cannot be read: {error}") from None
