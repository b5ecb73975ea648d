"""Our events in NeuroScope's shapes: whole answers, and JSON lines with the activations of each step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ....protos.errors import ProbewireError
from ....protos.model import Event, Finished, TensorFrame, Token
from ....protos.tensors import dtype_name
from ....protos.wire.assemble import AssembledCapture, assemble
from ....protos.wire.error_body import error_to_json
from ..http.answer import Answer
from ..http.formats import NDJSON, dumps
from ..http.tensors import lists
from ..openai.answer import choice_reason
from .hooks import NeuroHook

__all__ = ["ActivationLines", "Source", "activations_of", "choice_of"]

Source = tuple[NeuroHook, bool]
"""Whose tensor it is, and whether it is the component's input."""


def choice_of(answer: Answer, finished: Finished) -> dict[str, Any]:
    """One generated text."""
    message = {"role": "assistant", "content": answer.text(finished.input)}
    return {"index": 0, "message": message, "finish_reason": choice_reason(finished)}


def activations_of(
    captures: Iterable[AssembledCapture], sources: Sequence[Source], first_hook: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Entries by hook_id. `sources` tells of the plan's hooks from index `first_hook` on."""
    found: dict[str, list[dict[str, Any]]] = {}
    for capture in sorted(captures, key=lambda capture: capture.key.hook):
        hook, is_input = sources[capture.key.hook - first_hook]
        found.setdefault(hook.hook_id, []).append(_entry(hook, is_input, capture))
    return found


def _entry(hook: NeuroHook, is_input: bool, capture: AssembledCapture) -> dict[str, Any]:
    array = capture.array[None]  # the dialect has a batch axis, of one
    return {
        "hook_id": hook.hook_id,
        "layer_name": hook.place.layer_name,
        "component": hook.place.component,
        "shape": list(array.shape),
        "dtype": dtype_name(array.dtype),
        "is_input": is_input,
        "positions": list(capture.positions),
        "data": lists(array),
    }


class ActivationLines:
    """{"choices": [{"delta": {"content"}, "finish_reason"}], "activations": {…}} a line; a line a step."""

    media_type = NDJSON

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources

    def item(self, item: Iterable[Event]) -> list[bytes]:
        """One line, unless the step brought nothing to tell."""
        events = list(item)
        tokens = [event for event in events if isinstance(event, Token)]
        finished = [event for event in events if isinstance(event, Finished)]
        captures = assemble(event for event in events if isinstance(event, TensorFrame)).values()
        if not tokens and not finished and not captures:
            return []
        delta = {"content": "".join(token.text for token in tokens)} if tokens else {}
        reason = choice_reason(finished[0]) if finished else None
        line = {
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}],
            "activations": activations_of(captures, self._sources),
        }
        return [dumps(line) + b"\n"]

    def error(self, error: ProbewireError, request_id: str) -> bytes:
        """The last line."""
        return dumps(error_to_json(error, request_id)) + b"\n"

    def end(self) -> bytes:
        """The line with a finish_reason is the last."""
        return b""
