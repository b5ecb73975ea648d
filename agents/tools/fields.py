"""The arguments that several tools take, with their bounds and what an agent is told of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from ...clients import Hook, Input, Message
from ...clients.requests.hooks import to_plan

__all__ = ["Hooks", "Model", "Prompt", "Sites", "Turn", "Variant", "as_input", "hooks_of"]


class Turn(BaseModel):
    """One chat message."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(max_length=20_000)]


Prompt = Annotated[
    str | list[Turn],
    Field(
        description="A text, continued as it is; or chat messages, rendered by the model's template.", max_length=20_000
    ),
]
Model = Annotated[str, Field(description="Needed only where the box serves several.", max_length=200)]
Variant = Annotated[list[str], Field(description="Names of loaded variants to run with.", max_length=8)]
Sites = Annotated[
    list[str],
    Field(
        description="Sites to read: resid_post.10, mlp_act.3, attn_probs.5, resid_post.*; `describe` lists them.",
        min_length=1,
        max_length=32,
    ),
]
Hooks = Annotated[
    list[dict[str, Any]],
    Field(
        description='Edits on the way, as the REST API takes them: {"site": "resid_post.10", "edit": {"scale": {"factor": 0}}, '
        '"where": {"positions": [-1]}}.',
        max_length=32,
    ),
]


def as_input(prompt: str | list[Turn], name: str = "input") -> Input:
    """A prompt as a request has it."""
    if isinstance(prompt, str):
        return Input(text=prompt, name=name)
    return Input(messages=tuple(Message(turn.role, turn.content) for turn in prompt), name=name)


def hooks_of(hooks: list[dict[str, Any]]) -> tuple[Hook, ...]:
    """Raises InvalidArgument for what is no hook."""
    return to_plan(hooks).hooks
