"""What a Run or Generate answer looks like: chosen by `format`, `stream` and Accept; and the encodings that stream."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, cast

import orjson

from ....protos.errors import InvalidArgument, ProbewireError
from ....protos.model import Event, TensorFrame
from ....protos.wire.codec import to_json
from ....protos.wire.delimited import MEDIA_TYPE as PROTOBUF, delimit, trailer
from ....protos.wire.error_body import error_to_json
from ....protos.wire.events import encode_events
from .tensors import Style, frame_json

__all__ = ["FORMATS", "NDJSON", "STREAMS", "Delimited", "Format", "JsonLines", "ServerSentEvents", "chosen_format"]

NDJSON = "application/x-ndjson"

Format = Literal["json", "safetensors", "sse", "ndjson", "protobuf"]

FORMATS: dict[str, Format] = {
    "application/json": "json",
    "application/safetensors": "safetensors",
    "application/octet-stream": "safetensors",
    "text/event-stream": "sse",
    NDJSON: "ndjson",
    PROTOBUF: "protobuf",
}
"""Media type → format."""
STREAMS = ("sse", "ndjson", "protobuf")


def chosen_format(accept: str, named: str | None, stream: bool | None) -> Format:
    """The body's `format` wins over Accept; `stream: true` turns JSON into server-sent events."""
    if named is not None:
        if named not in FORMATS.values():
            raise InvalidArgument(f"format {named!r}; allowed: {', '.join(dict.fromkeys(FORMATS.values()))}")
        chosen = cast("Format", named)
        explicit = True
    else:
        chosen, explicit = accepted(accept)
    if stream is True and chosen == "json" and named is None:
        return "sse"
    if stream is not None and explicit and stream != (chosen in STREAMS):
        raise InvalidArgument(
            f"stream is {str(stream).lower()}, but {chosen} is {'' if chosen in STREAMS else 'not '}a stream; "
            f"streams are {', '.join(STREAMS)}"
        )
    return chosen


def accepted(accept: str) -> tuple[Format, bool]:
    """The first format that an Accept header allows, likeliest first, and whether it was named. Empty: JSON."""
    if not accept.strip():
        return "json", False
    refused = {part.split(";")[0].strip().lower() for part in accept.split(",") if _quality(part) == 0}
    wanted = sorted(((_quality(part), part) for part in accept.split(",")), key=lambda pair: -pair[0])
    for quality, part in wanted:
        media = part.split(";")[0].strip().lower()
        if quality > 0 and media in FORMATS:
            return FORMATS[media], True
        if quality > 0 and media in ("*/*", "application/*"):
            return next(form for name, form in FORMATS.items() if name not in refused), False
    raise InvalidArgument(f"nothing that Accept {accept!r} allows can be sent; allowed: {', '.join(FORMATS)}")


def _quality(part: str) -> float:
    for parameter in part.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def _named(event: Event, style: Style) -> tuple[str, Any]:
    if isinstance(event, TensorFrame):
        return "tensor_frame", frame_json(event, style)
    return type(event).__name__.lower(), to_json(event, tensors="list")  # of metrics, which are few


def dumps(data: Any) -> bytes:
    """Compact JSON, numpy arrays included."""
    return orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)


class ServerSentEvents:
    """`event: started|token|tensor_frame|revised|measured|finished|error`, its fields as JSON in `data`."""

    media_type = "text/event-stream"

    def __init__(self, style: Style) -> None:
        self._style: Style = style

    def item(self, item: Iterable[Event]) -> list[bytes]:
        """One event each."""
        named = (_named(event, self._style) for event in item)
        return [b"event: %s\ndata: %s\n\n" % (name.encode(), dumps(data)) for name, data in named]

    def error(self, error: ProbewireError, request_id: str) -> bytes:
        """The last event."""
        return b"event: error\ndata: %s\n\n" % dumps(error_to_json(error, request_id))

    def end(self) -> bytes:
        """The last `finished` says it all."""
        return b""


class JsonLines:
    """A JSON object a line, with one key, the kind of event: {"token": {…}}, {"error": {…}}."""

    media_type = NDJSON

    def __init__(self, style: Style) -> None:
        self._style: Style = style

    def item(self, item: Iterable[Event]) -> list[bytes]:
        """One line each."""
        return [dumps({name: data}) + b"\n" for name, data in (_named(event, self._style) for event in item)]

    def error(self, error: ProbewireError, request_id: str) -> bytes:
        """The last line."""
        return dumps(error_to_json(error, request_id)) + b"\n"

    def end(self) -> bytes:
        """The last `finished` says it all."""
        return b""


class Delimited:
    """`Events` messages behind their lengths and a trailer: see protos/wire/delimited.py."""

    media_type = PROTOBUF

    def item(self, item: Iterable[Event]) -> list[bytes]:
        """Messages of under 1 MiB."""
        return [delimit(message) for message in encode_events(item)]

    def error(self, error: ProbewireError, request_id: str) -> bytes:
        """The trailer, with the error."""
        return trailer(error, request_id)

    def end(self) -> bytes:
        """The trailer of a whole answer."""
        return trailer()
