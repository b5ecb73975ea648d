"""OpenAI's requests as ours. What cannot be honoured is refused by name, never ignored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from ....protos.errors import InvalidArgument
from ....protos.generation.messages import ONLY_TEXT, Message, ToolCall, ToolFormat
from ....protos.generation.sampling import Sampling
from ....protos.model import MAX_INPUTS, GenerateRequest, Input
from ....protos.spec import Plan
from ....protos.variants.use import VariantUse
from ....protos.wire.codec import from_json
from ..http.body import parsed
from ..http.fields import Fields, brief, is_list
from ..http.tensors import Style, style_of
from .constraints import constraints_of
from .tools import ToolUse, tools_of

__all__ = ["Completion", "chat_completion", "messages_of", "sampling_of", "text_completion", "untouched"]

COMPLETION_TOKENS = 16
"""OpenAI's own default of max_tokens in /v1/completions."""

_HARMLESS = (
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "parallel_tool_calls",
)
"""Change nothing in an answer without tools."""

_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "frequency_penalty": (0, 0.0),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "presence_penalty": (0, 0.0),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Field → the values that ask for nothing. Of sampling's among them OpenAI's own routes take others too, before."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A request of OpenAI's, ours inside. Input `i·n + j` is choice j of prompt i."""

    request: GenerateRequest
    chat: bool
    n: int
    """Choices a prompt."""
    stream: bool
    include_usage: bool
    logprobs: bool
    style: Style | None
    """How tensors stand in the answer's `probewire` field; None: the request has no such field, nor has the answer."""
    capped: bool
    """The caller said how many tokens at most."""
    echo: bool = False
    """The prompt stands before what is generated, and its tokens' log-probabilities before the new ones'."""
    silent: bool = False
    """Nothing is generated: `max_tokens` is 0."""
    tool_use: ToolUse | None = None
    tool_format: ToolFormat | None = None
    """How the model writes calls, where it is told of tools."""


def chat_completion(body: dict[str, Any]) -> Completion:
    """POST /v1/chat/completions."""
    fields = Fields(body)
    item = Input(messages=messages_of(fields), continue_final=_continues(fields))
    logprobs, top = fields.take("logprobs", bool, False), fields.optional("top_logprobs", int)
    if top is not None and not logprobs:
        raise InvalidArgument("top_logprobs needs logprobs: true")
    fields.only("echo", False)
    use = tools_of(fields)
    item = item if use is None else replace(item, tools=use.tools)
    made = _completion(fields, [item], chat=True, logprobs=(top or 0) if logprobs else None)
    if use is not None and (use.required or use.strict) and made.request.sampling.grammar is not None:
        raise InvalidArgument(
            "response_format is one form of the whole text, tool_choice and strict tools another; leave out one"
        )
    return replace(made, tool_use=use)


def _continues(fields: Fields) -> bool:
    """Whether the last message goes on: vLLM's two fields, of which one is true."""
    goes_on = fields.take("continue_final_message", bool, False)
    begins = fields.take("add_generation_prompt", bool, not goes_on)
    if begins == goes_on:
        raise InvalidArgument(
            "add_generation_prompt begins a reply and continue_final_message goes on with the last message: one of them "
            f"is true, got {str(begins).lower()} for both"
        )
    return goes_on


def text_completion(body: dict[str, Any]) -> Completion:
    """POST /v1/completions."""
    fields = Fields(body)
    logprobs, echo = fields.optional("logprobs", int), fields.take("echo", bool, False)
    return _completion(fields, _prompts(fields), chat=False, logprobs=logprobs, echo=echo)


def _completion(
    fields: Fields, prompts: Sequence[Input], *, chat: bool, logprobs: int | None, echo: bool = False
) -> Completion:
    n = fields.take("n", int, 1)
    if not 1 <= n * len(prompts) <= MAX_INPUTS:
        raise InvalidArgument(f"n choices of {len(prompts)} prompts: 1 to {MAX_INPUTS} together, got n = {n}")
    default = None if chat else COMPLETION_TOKENS
    sampling, limit = sampling_of(fields, logprobs=logprobs, max_tokens=default, may_be_none=echo)
    sampling = replace(sampling, **constraints_of(fields))
    plan, style, session, variants = _extra(fields)
    raw_options = fields.raw("stream_options")
    options = Fields({} if raw_options is None else raw_options, "stream_options")
    include_usage = options.take("include_usage", bool, False)
    options.harmless("include_obfuscation")
    options.done()
    model, stream = fields.take("model", str, ""), fields.take("stream", bool, False)
    untouched(fields)
    fields.done()
    if echo and stream:
        raise InvalidArgument("echo comes with whole answers; leave out stream, or echo")
    if limit == 0 and session:
        raise InvalidArgument(
            "max_tokens 0 is one forward, which follows no session; give max_tokens 1, or leave it out"
        )
    inputs = [item for item in prompts for _ in range(n)]
    return Completion(
        GenerateRequest(_numbered(inputs), model, plan, sampling, session, variants),
        chat=chat,
        n=n,
        stream=stream,
        include_usage=include_usage,
        logprobs=logprobs is not None,
        style=style,
        capped=not chat or limit is not None,
        echo=echo,
        silent=limit == 0,
    )


def _numbered(inputs: Sequence[Input]) -> tuple[Input, ...]:
    """Names that hooks can point at: `input` when there is one, else 0, 1, …"""
    if len(inputs) == 1:
        return tuple(inputs)
    return tuple(replace(item, name=str(i)) for i, item in enumerate(inputs))


def sampling_of(
    fields: Fields,
    *,
    logprobs: int | None = None,
    max_tokens: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    may_be_none: bool = False,
) -> tuple[Sampling, int | None]:
    """Sampling with a dialect's own defaults, and how many tokens at most the caller said, who `may_be_none` at all want."""
    asked = {
        name: v for name in ("max_completion_tokens", "max_tokens") if (v := fields.optional(name, int)) is not None
    }
    if len(set(asked.values())) > 1:
        raise InvalidArgument(f"max_tokens and max_completion_tokens mean the same; give one, got {asked}")
    said = next(iter(asked.values()), None)
    limit = max_tokens if said is None else 1 if said == 0 and may_be_none else said
    sampling = Sampling(
        max_new_tokens=Sampling().max_new_tokens if limit is None else limit,
        temperature=fields.take("temperature", float, temperature),
        top_p=fields.take("top_p", float, top_p),
        seed=fields.optional("seed", int),
        stop=fields.strings("stop"),
        logprobs=logprobs,
    )
    return sampling, said


def untouched(fields: Fields) -> None:
    """Take what changes nothing, refuse what we do not do."""
    fields.harmless(*_HARMLESS)
    for name, allowed in _UNSUPPORTED.items():
        fields.only(name, *allowed)


def _extra(fields: Fields) -> tuple[Plan, Style | None, str, tuple[VariantUse, ...]]:
    """The field `probewire`: {"hooks": […], "session": id, "variants": […], "tensors": "base64" | "list"}."""
    raw = fields.raw("probewire")
    if raw is None:
        return Plan(), None, "", ()
    extra = Fields(raw, "probewire")
    hooks, style = extra.raw("hooks"), style_of(extra.raw("tensors"))
    session, variants = extra.take("session", str, ""), extra.raw("variants")
    extra.done()
    plan = parsed(Plan, {} if hooks is None else {"hooks": hooks}, "probewire")
    return plan, style, session, _uses([] if variants is None else variants)


def _uses(raw: Any) -> tuple[VariantUse, ...]:
    """Names, or objects with name, scale and where; one name alone does too."""
    items = [raw] if isinstance(raw, str) else raw
    if not isinstance(items, list):
        raise InvalidArgument("probewire.variants must be a list of names, or of objects with name, scale and where")
    return tuple(
        from_json(VariantUse, item, f"probewire.variants[{i}]") for i, item in enumerate(cast("list[Any]", items))
    )


def messages_of(fields: Fields) -> tuple[Message, ...]:
    """`messages`: roles with text, which may come in parts."""
    return tuple(
        _message(Fields(item, f"messages[{i}]"), f"messages[{i}]") for i, item in enumerate(fields.list_of("messages"))
    )


def _message(fields: Fields, path: str) -> Message:
    role, calls = fields.required("role", str), fields.raw("tool_calls")
    content = fields.raw("content")
    if content is None and calls and role == "assistant":
        content = ""
    if is_list(content):
        parts = enumerate(content)
        content = "\n".join(_text_part(Fields(part, f"{path}.content[{i}]")) for i, part in parts)
    elif not isinstance(content, str):
        raise InvalidArgument(f"{path}.content must be text, got {brief(content)}")
    answers = role == "tool"
    answered, name = (fields.take(key, str, "") if answers else "" for key in ("tool_call_id", "name"))
    for key in ("audio", "function_call", "refusal"):
        fields.only(key)
    for key in ("name", "tool_call_id"):
        fields.only(key, "")
    fields.only("annotations", [])
    fields.done()
    if calls and role != "assistant":
        raise InvalidArgument(f"{path}.tool_calls are an assistant's, and its role is {brief(role)}")
    return Message(role, content, _calls(calls, f"{path}.tool_calls"), answered, name)


def _calls(raw: Any, path: str) -> tuple[ToolCall, ...]:
    if raw is None:
        return ()
    if not is_list(raw):
        raise InvalidArgument(f"{path} must be a list, got {brief(raw)}")
    return tuple(_call(Fields(item, f"{path}[{i}]"), f"{path}[{i}]") for i, item in enumerate(raw))


def _call(fields: Fields, path: str) -> ToolCall:
    own = fields.required("id", str)
    fields.only("type", "function")
    function = Fields(fields.raw("function"), f"{path}.function")
    fields.done()
    made = ToolCall(own, function.required("name", str), function.take("arguments", str, "{}"))
    function.done()
    return made


def _text_part(fields: Fields) -> str:
    if (kind := fields.raw("type")) not in (None, "text"):
        raise InvalidArgument(f"{fields.name('type')} is {brief(kind)}; {ONLY_TEXT}")
    text = fields.required("text", str)
    fields.done()
    return text


def _prompts(fields: Fields) -> list[Input]:
    """A string, token ids, or a list of either."""
    raw = fields.raw("prompt")
    if isinstance(raw, str):
        return [Input(text=raw)]
    if not is_list(raw) or not raw:
        raise InvalidArgument(f"prompt must be a string, token ids, or a list of either, got {brief(raw)}")
    if len(raw) > MAX_INPUTS and not isinstance(raw[0], int):
        raise InvalidArgument(f"prompt has {len(raw)} prompts; at most {MAX_INPUTS} are allowed")
    if all(isinstance(item, str) for item in raw):
        return [Input(text=item) for item in raw]
    if _are_ids(raw):
        return [Input(token_ids=tuple(raw))]
    if all(is_list(item) and item and _are_ids(item) for item in raw):
        return [Input(token_ids=tuple(item)) for item in raw]
    raise InvalidArgument("prompt mixes kinds; send a string, token ids, or a list of one of these")


def _are_ids(items: list[Any]) -> bool:
    return all(isinstance(item, int) and not isinstance(item, bool) for item in items)
