"""What NeuroScope's routes take and give, for OpenAPI, and the dialect's defaults."""

from __future__ import annotations

from typing import Any

from ..http.context import content, ok
from ..http.formats import NDJSON
from ..http.schema import Schema, object_schema
from .hooks import COMPONENTS
from .patch import TYPES

__all__ = ["MAX_TOKENS", "TEMPERATURE", "TOP_P", "chat_answers", "chat_schema", "hooks_schema", "patch_schema"]

MAX_TOKENS, TEMPERATURE, TOP_P = 100, 0.7, 0.9
"""The dialect's own defaults."""

_TEXT: Schema = {"type": "string"}
_FLAG: Schema = {"type": "boolean"}


def _place_properties() -> dict[str, Schema]:
    return {
        "layer_name": {**_TEXT, "example": "transformer.h.5"},
        "component": {**_TEXT, "enum": list(COMPONENTS)},
    }


def _hooks_property() -> Schema:
    hook = object_schema(
        {
            **_place_properties(),
            "hook_id": {**_TEXT, "description": "Default: {layer_name}_{component}."},
            "capture_input": {**_FLAG, "default": False},
            "capture_output": {**_FLAG, "default": True},
        },
        ("layer_name", "component"),
    )
    return {"type": "array", "items": hook}


def _sampling_properties(temperature: float, top_p: float) -> dict[str, Schema]:
    return {
        "model": _TEXT,
        "max_tokens": {"type": "integer", "default": MAX_TOKENS},
        "temperature": {"type": "number", "default": temperature},
        "top_p": {"type": "number", "default": top_p},
        "seed": {"type": "integer"},
        "stop": {"oneOf": [_TEXT, {"type": "array", "items": _TEXT}]},
    }


def chat_schema() -> Schema:
    """POST /v1/chat/completions/with_activations."""
    message = object_schema({"role": _TEXT, "content": _TEXT}, ("role", "content"))
    return object_schema(
        {
            "messages": {"type": "array", "items": message},
            "activation_hooks": _hooks_property(),
            "stream": {**_FLAG, "description": "JSON lines, one a step."},
            **_sampling_properties(TEMPERATURE, TOP_P),
        },
        ("messages",),
    )


def hooks_schema() -> Schema:
    """POST /v1/activations/hooks."""
    return object_schema({"hooks": _hooks_property(), "model": _TEXT}, ("hooks",))


def patch_schema() -> Schema:
    """POST /v1/activations/patch."""
    positions: Schema = {"oneOf": [{"type": "array", "items": {"type": "integer"}}, {**_TEXT, "enum": ["all"]}]}
    intervention = object_schema(
        {
            **_place_properties(),
            "type": {**_TEXT, "enum": list(TYPES), "default": "zero_ablation"},
            "strength": {"type": "number", "default": 1.0},
            "target_positions": positions,
        },
        ("layer_name",),
    )
    return object_schema(
        {
            "prompt": _TEXT,
            "baseline_prompt": {**_TEXT, "description": "Default: prompt."},
            "interventions": {"type": "array", "items": intervention},
            "activation_hooks": _hooks_property(),
            **_sampling_properties(0.0, 1.0),
        },
        ("prompt", "interventions"),
    )


def chat_answers() -> dict[int | str, dict[str, Any]]:
    """A whole answer, or JSON lines."""
    found = ok("NeuroScope's answer", ("application/json", {"type": "object"}))
    found[200]["content"] |= content((NDJSON, {"type": "object"}))
    return found
