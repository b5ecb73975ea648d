"""A whole answer of an inference, once every event is there: one JSON object, or one safetensors file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ....protos.errors import Internal
from ....protos.metrics import Measured
from ....protos.model import Event, Finished, Started, TensorFrame, Token
from ....protos.wire.assemble import AssembledCapture, assemble
from ....protos.wire.codec import to_json
from .tensors import Style, capture_json, capture_names, safetensors_file

__all__ = ["Answer"]


@dataclass(frozen=True, slots=True)
class Answer:
    """The events of one request, sorted by kind."""

    started: Started
    tokens: tuple[Token, ...]
    captures: tuple[AssembledCapture, ...]
    """In the order of the inputs, then of the plan's hooks."""
    finished: tuple[Finished, ...]
    measured: tuple[Measured, ...] = ()

    @classmethod
    def of(cls, batches: Sequence[Sequence[Event]]) -> Answer:
        """Raises Internal unless there is exactly one `started`."""
        events = [event for batch in batches for event in batch]
        started = [event for event in events if isinstance(event, Started)]
        if len(started) != 1:
            raise Internal(f"the answer started {len(started)} times; it must once")
        captures = assemble(event for event in events if isinstance(event, TensorFrame)).values()
        order = {item.name: index for index, item in enumerate(started[0].inputs)}
        return cls(
            started[0],
            tuple(event for event in events if isinstance(event, Token)),
            tuple(sorted(captures, key=lambda capture: (order.get(capture.key.input, 0), capture.key.hook))),
            tuple(event for event in events if isinstance(event, Finished)),
            tuple(event for event in events if isinstance(event, Measured)),
        )

    def text(self, name: str) -> str:
        """What was generated from one input."""
        return "".join(token.text for token in self.tokens if token.input == name)

    def json(self, style: Style) -> dict[str, Any]:
        """started, text (by input), tokens, measured, tensors, finished."""
        return {**self._plain(), "tensors": [capture_json(capture, style) for capture in self.captures]}

    def safetensors(self) -> bytes:
        """The tensors, named as `capture_names` says; all the rest is JSON in the metadata, `tensors` by tensor name."""
        named = capture_names(self.captures)
        about = {
            name: {
                "input": capture.key.input,
                "hook": capture.key.hook,
                "id": capture.id,
                "site": capture.key.site,
                "part": capture.key.part,
                "revision": capture.key.revision,
                "positions": list(capture.positions),
            }
            for name, capture in named.items()
        }
        return safetensors_file({name: c.array for name, c in named.items()}, {**self._plain(), "tensors": about})

    def _plain(self) -> dict[str, Any]:
        return {
            "started": to_json(self.started),
            "text": {name: self.text(name) for name in dict.fromkeys(token.input for token in self.tokens)},
            "tokens": [to_json(token) for token in self.tokens],
            "measured": [to_json(event, tensors="list") for event in self.measured],
            "finished": [to_json(event) for event in self.finished],
        }
