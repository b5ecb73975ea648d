"""Our events in OpenAI's shapes: whole answers, and the chunks of a stream."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from ....protos.errors import ProbewireError
from ....protos.generation.messages import ToolCall
from ....protos.model import Event, Finished, Revised, Started, TensorFrame, Token, Usage
from ....protos.wire.assemble import assemble
from ....protos.wire.codec import to_json
from ....protos.wire.error_body import error_to_json
from ..http.answer import Answer
from ..http.formats import dumps
from ..http.tensors import Style, capture_json
from .calls import CallReader, call_json
from .echo import Echo
from .logprobs import ChatLogprobs, TextLogprobs
from .request import Completion

__all__ = ["Chunks", "choice_reason", "usage_json", "whole_answer"]


def _logprobs(completion: Completion) -> ChatLogprobs | TextLogprobs:
    return ChatLogprobs(completion.request.sampling.logprobs or 0) if completion.chat else TextLogprobs()


def choice_reason(finished: Finished) -> str:
    """OpenAI knows `stop`, whatever stopped it, and `length`, also of nothing at all."""
    return "length" if finished.reason in ("length", "run") else "stop"


def usage_json(prompts: Iterable[Usage], all_inputs: Iterable[Usage]) -> dict[str, int]:
    """Each prompt is counted once, however many choices it has."""
    prompt_tokens = sum(usage.prompt_tokens for usage in prompts)
    completion_tokens = sum(usage.completion_tokens for usage in all_inputs)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _usage(completion: Completion, finished: Mapping[str, Finished]) -> dict[str, int]:
    usages = [finished[item.name].usage for item in completion.request.inputs]
    return usage_json(usages[:: completion.n], usages)


def _head(completion: Completion, started: Started, kind: str) -> dict[str, Any]:
    prefix = "chatcmpl" if completion.chat else "cmpl"
    return {
        "id": f"{prefix}-{started.request_id}",
        "object": kind,
        "created": int(time.time()),
        "model": started.model,
        "system_fingerprint": started.model_hash,
    }


def whole_answer(completion: Completion, answer: Answer, echo: Echo | None = None) -> dict[str, Any]:
    """A ChatCompletion or a Completion; `echo`: what stands before each choice."""
    finished = {event.input: event for event in answer.finished}
    out = {
        **_head(completion, answer.started, "chat.completion" if completion.chat else "text_completion"),
        "choices": [
            _choice(completion, index, answer, finished[item.name], echo)
            for index, item in enumerate(completion.request.inputs)
        ],
        "usage": _usage(completion, finished),
    }
    if completion.style is not None:
        style: Style = completion.style
        out["probewire"] = {
            "started": to_json(answer.started),
            "tensors": [capture_json(capture, style) for capture in answer.captures],
            "finished": [to_json(event) for event in answer.finished],
        }
    return out


def _choice(
    completion: Completion, index: int, answer: Answer, finished: Finished, echo: Echo | None
) -> dict[str, Any]:
    text = answer.text(finished.input)
    tokens = [token for token in answer.tokens if token.input == finished.input]
    told = None
    if echo is not None:
        before = echo.prompt(index // completion.n)
        text = before.text + text
        if completion.logprobs:
            after = TextLogprobs(len(before.text)).of(tokens)
            told = {name: [*before.logprobs[name], *values] for name, values in after.items()}
    elif completion.logprobs:
        told = _logprobs(completion).of(tokens)
    if (reader := _reader(completion, finished.input, answer.started.request_id)) is not None:
        said = "".join(reader.add(token.id, token.text) for token in answer.tokens if token.input == finished.input)
        rest, calls = reader.end()
        return _called(said + rest, calls, {"index": index, "logprobs": told}, finished)
    said = {"message": {"role": "assistant", "content": text, "refusal": None}} if completion.chat else {"text": text}
    return {"index": index, **said, "logprobs": told, "finish_reason": choice_reason(finished)}


def _reader(completion: Completion, name: str, request_id: str) -> CallReader | None:
    """What parts a choice's text from its calls, where there are tools."""
    use, form = completion.tool_use, completion.tool_format
    return None if use is None or form is None else CallReader(form, many=use.many, key=f"{request_id}/{name}")


def _called(text: str, calls: tuple[ToolCall, ...], choice: dict[str, Any], finished: Finished) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None, "refusal": None}
    if calls:
        message["tool_calls"] = [call_json(call) for call in calls]
    return {**choice, "message": message, "finish_reason": _reason_with(calls, finished)}


def _reason_with(calls: tuple[ToolCall, ...], finished: Finished) -> str:
    reason = choice_reason(finished)
    return "tool_calls" if calls and reason == "stop" else reason


class Chunks:
    """The `data:` lines of a stream. Each token is a chunk; what was captured in its step rides on it."""

    media_type = "text/event-stream"

    def __init__(self, completion: Completion) -> None:
        self._completion = completion
        self._index = {item.name: i for i, item in enumerate(completion.request.inputs)}
        self._logprobs = {name: _logprobs(completion) for name in self._index}
        self._readers: dict[str, CallReader] = {}
        self._head: dict[str, Any] = {}
        self._finished: dict[str, Finished] = {}

    def item(self, item: Iterable[Event]) -> list[bytes]:
        """The chunks of one step."""
        events = list(item)
        chunks: list[bytes] = []
        for event in events:
            if isinstance(event, Started):
                chunks += self._opening(event)
        tensors = self._tensors(event for event in events if isinstance(event, TensorFrame))
        for event in events:
            if isinstance(event, Token):
                told = self._logprobs[event.input].of([event]) if self._completion.logprobs else None
                reader = self._readers.get(event.input)
                text = event.text if reader is None else reader.add(event.id, event.text)
                chunks.append(self._chunk(event.input, text, told, extra=tensors.pop(event.input, {})))
            elif isinstance(event, Revised) and self._completion.style is not None:
                chunks.append(self._chunk(event.input, "", None, extra={"revised": to_json(event)}))
            elif isinstance(event, Finished):
                extra = tensors.pop(event.input, {})
                if self._completion.style is not None:
                    extra = {**extra, "finished": [to_json(event)]}
                self._finished[event.input] = event
                calls = self._ended(event.input, chunks)
                chunks.append(self._chunk(event.input, None, None, reason=_reason_with(calls, event), extra=extra))
        return chunks + [self._chunk(name, "", None, extra=extra) for name, extra in tensors.items()]

    def _ended(self, name: str, chunks: list[bytes]) -> tuple[ToolCall, ...]:
        """A choice's calls, put out whole, behind the rest of its text."""
        reader = self._readers.pop(name, None)
        rest, calls = ("", ()) if reader is None else reader.end()
        if rest:
            chunks.append(self._chunk(name, rest, None, extra={}))
        if calls:
            chunks.append(self._chunk(name, None, None, extra={}, calls=calls))
        return calls

    def error(self, error: ProbewireError, request_id: str) -> bytes:
        """The last line: no [DONE] follows."""
        return b"data: %s\n\n" % dumps(error_to_json(error, request_id))

    def end(self) -> bytes:
        """The usage, where asked for, and [DONE]."""
        lines = b"data: [DONE]\n\n"
        if self._completion.include_usage:
            usage: dict[str, Any] = {**self._head, "choices": [], "usage": _usage(self._completion, self._finished)}
            lines = b"data: %s\n\n" % dumps(usage) + lines
        return lines

    def _opening(self, started: Started) -> list[bytes]:
        completion = self._completion
        made = {name: _reader(completion, name, started.request_id) for name in self._index}
        self._readers = {name: reader for name, reader in made.items() if reader is not None}
        self._head = _head(completion, started, "chat.completion.chunk" if completion.chat else "text_completion")
        extra = {} if completion.style is None else {"started": to_json(started)}
        if not completion.chat:
            return [self._chunk(next(iter(self._index)), "", None, extra=extra)] if extra else []
        names = list(self._index)
        return [self._chunk(name, "", None, role=True, extra=extra if name == names[0] else {}) for name in names]

    def _chunk(
        self,
        name: str,
        text: str | None,
        logprobs: dict[str, Any] | None,
        *,
        role: bool = False,
        reason: str | None = None,
        extra: dict[str, Any],
        calls: tuple[ToolCall, ...] = (),
    ) -> bytes:
        said: dict[str, Any] = {"text": text or ""}
        if self._completion.chat:
            delta: dict[str, Any] = {"role": "assistant"} if role else {}
            if calls:
                delta["tool_calls"] = [call_json(call, i) for i, call in enumerate(calls)]
            said = {"delta": delta if text is None else {**delta, "content": text}}
        choice = {"index": self._index[name], **said, "logprobs": logprobs, "finish_reason": reason}
        chunk = {**self._head, "choices": [choice]}
        if self._completion.include_usage:
            chunk["usage"] = None
        if extra:
            chunk["probewire"] = extra
        return b"data: %s\n\n" % dumps(chunk)

    def _tensors(self, frames: Iterable[TensorFrame]) -> dict[str, dict[str, Any]]:
        """What the step captured, by input."""
        found: dict[str, dict[str, Any]] = {}
        if (style := self._completion.style) is not None:
            for capture in assemble(frames).values():
                entry = found.setdefault(capture.key.input, {"tensors": []})
                entry["tensors"].append(capture_json(capture, style))
        return found
