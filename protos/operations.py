"""Everything that a server does, as values: a row an operation, from which gRPC, REST, roles and clients are made.

A row is enough for a new one, beside its messages and the function that answers it (`server/worker/functions.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf.message import Message as ProtoMessage

from . import probewire_pb2 as pb
from .activity import ActivityReport, WorkerStatus
from .gradients import GradientsRequest
from .loading import LoadProgress, LoadRequest
from .model import (
    Event,
    GenerateRequest,
    ModelInfo,
    RunRequest,
    StoredCapture,
    Tokenized,
    TokenizeRequest,
    TokenizerInfo,
)
from .saes import LoadSaeRequest, SaeInfo, SaePart, SaeReceived
from .sessions import CreateSessionRequest, Session, UpdateSessionRequest
from .sweeps import SweepRequest
from .variants.stored import LoadVariantRequest, VariantInfo, VariantPart, VariantPartRequest
from .wire.codec import from_proto, to_proto

__all__ = ["BY_CALL", "BY_NAME", "COMPUTED", "OPERATIONS", "Operation", "Role"]

Role = Literal["viewer", "researcher", "admin"]
"""What a user may do: the next one what the one before may, and more."""
Answer = Literal["value", "list", "nothing", "values", "events", "chunks"]
"""One value; a list of them; nothing; a stream of values, of events, or of pieces of weights."""

_PB: Any = pb  # messages are looked up by name


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What is asked and what is answered, and who may ask."""

    name: str
    """The service and method of the contract: `Sessions.Create`."""
    call: str
    """The method of `Service` and `Operations`, and the function of the client: `create_session`."""
    request: type[Any] | str
    """A value class, or a message by its name, whose `fields` are the arguments."""
    fields: tuple[str, ...] = ()
    answer: Any = None
    """The value class, of a list or stream that of its items."""
    kind: Answer = "value"
    listed: str = ""
    """List: the message, and its field: `SaeList.saes`."""
    role: Role = "researcher"
    """That is needed at least."""
    counted: bool = False
    """It takes a model's time, and counts against its user's limits."""
    route: str = ""
    """Where HTTP has it: `POST /v1/sessions`."""
    summary: str = ""
    """HTTP: what it does, where its route is made of this row; empty: it has a route of its own."""
    returns: str = "The answer"
    """HTTP: what its document says of the answer."""
    inner: bool = False
    """Only the gateway asks it, and only of a worker."""

    @property
    def service(self) -> str:
        """The gRPC service."""
        return f"probewire.v1.{self.name.partition('.')[0]}"

    @property
    def method(self) -> str:
        """The method in its service."""
        return self.name.partition(".")[2]

    @property
    def path(self) -> str:
        """Where gRPC has it."""
        return f"/{self.service}/{self.method}"

    @property
    def message(self) -> type[ProtoMessage]:
        """The request's message."""
        return getattr(_PB, self.request if isinstance(self.request, str) else self.request.__name__)

    @property
    def answer_message(self) -> type[ProtoMessage]:
        """The answer's message, of a stream that of its items."""
        if self.kind in ("events", "chunks"):
            return pb.Events if self.kind == "events" else pb.WeightChunk
        name = (
            self.listed.partition(".")[0] if self.kind == "list" else self.answer.__name__ if self.answer else "Empty"
        )
        return getattr(_PB, name)

    def asked(self, *args: Any) -> ProtoMessage:
        """The request's message, of the arguments of a call."""
        if isinstance(self.request, str):
            return self.message(**dict(zip(self.fields, args, strict=False)))
        return to_proto(*args)

    def arguments(self, message: Any) -> tuple[Any, ...]:
        """The arguments of a call, of the request's message."""
        if isinstance(self.request, str):
            return tuple(getattr(message, name) for name in self.fields)
        return (from_proto(self.request, message),)

    def answered(self, answer: Any) -> ProtoMessage:
        """The answer's message, of what a call came to (of a stream of values: of one)."""
        if self.kind == "list":
            return self.answer_message(**{self.listed.partition(".")[2]: [to_proto(item) for item in answer]})
        return self.answer_message() if self.kind == "nothing" else to_proto(answer)

    def result(self, message: Any) -> Any:
        """What a call comes to, of the answer's message (of a stream of values: one)."""
        if self.kind == "nothing" or self.answer is None:
            return None
        if self.kind == "list":
            return [from_proto(self.answer, item) for item in getattr(message, self.listed.partition(".")[2])]
        return from_proto(self.answer, message)


def _inference(name: str, request: type[Any], summary: str) -> Operation:
    call = name.lower()
    return Operation(name=f"Inference.{name}", call=call, request=request, answer=Event, kind="events", counted=True,
                     route=f"POST /v1/{call}", summary=summary)  # fmt: skip


_MODEL, _SAE, _CAPTURE, _SESSION = ("model",), ("name", "model"), ("id", "model"), ("id",)

OPERATIONS: tuple[Operation, ...] = (
    Operation(name="Models.List", call="models", request="ListRequest", answer=ModelInfo, kind="list",
              listed="ModelList.models", role="viewer", route="GET /v1/models"),
    Operation(name="Models.Load", call="load", request=LoadRequest, answer=LoadProgress, kind="values", role="admin",
              route="POST /v1/models/load"),
    Operation(name="Models.Unload", call="unload", request="ModelRequest", fields=_MODEL, kind="nothing", role="admin",
              route="POST /v1/models/unload"),
    Operation(name="Models.Describe", call="describe", request="ModelRequest", fields=_MODEL, answer=ModelInfo,
              role="viewer", route="GET /v1/models/{model:path}"),
    Operation(name="Models.Tokenize", call="tokenize", request=TokenizeRequest, answer=Tokenized, role="viewer",
              route="POST /v1/tokenize"),
    Operation(name="Models.Tokenizer", call="tokenizer_info", request="ModelRequest", fields=_MODEL,
              answer=TokenizerInfo, role="viewer", route="GET /tokenizer_info",
              summary="Names of special tokens, and the chat template (as vLLM's route of the name)",
              returns="The tokenizer"),
    Operation(name="Models.Weights", call="weights", request="WeightsRequest", fields=_SAE, kind="chunks",
              route="GET /v1/weights/{name:path}"),
    _inference("Generate", GenerateRequest, "Sample a continuation, reading and editing on the way"),
    _inference("Run", RunRequest, "One forward pass, reading and editing on the way"),
    _inference("Gradients", GradientsRequest, "Gradients of a metric at any sites, under the rules of a linearised backward pass"),
    _inference("Sweep", SweepRequest, "What each of many plans does to a metric"),
    Operation(name="Captures.Get", call="capture", request="CaptureRequest", fields=_CAPTURE, answer=Event, kind="events",
              route="GET /v1/captures/{id:path}"),
    Operation(name="Captures.List", call="captures", request="ModelRequest", fields=_MODEL, answer=StoredCapture,
              kind="list", listed="CaptureList.captures", route="GET /v1/captures"),
    Operation(name="Captures.Delete", call="delete_capture", request="CaptureRequest", fields=_CAPTURE, kind="nothing",
              route="DELETE /v1/captures/{id:path}"),
    Operation(name="Saes.Load", call="load_sae", request=LoadSaeRequest, answer=SaeInfo, route="POST /v1/saes",
              summary="Load a sparse autoencoder in the sae-lens format onto a site of a model, for hooks to name",
              returns="The SAE"),
    Operation(name="Saes.Send", call="send_sae", request=SaePart, answer=SaeReceived, route="POST /v1/saes/parts",
              summary="Send a part of an SAE's weights, where they are more than one request may hold",
              returns="How much is there: where to go on"),
    Operation(name="Saes.List", call="saes", request="ModelRequest", fields=_MODEL, answer=SaeInfo, kind="list",
              listed="SaeList.saes", route="GET /v1/saes",
              summary="Your SAEs, and those that others share", returns="The SAEs"),
    Operation(name="Saes.Unload", call="unload_sae", request="SaeRequest", fields=_SAE, kind="nothing",
              route="DELETE /v1/saes/{name:path}",
              summary="Forget an SAE; requests that run with it go on", returns="Forgotten"),
    Operation(name="Variants.Load", call="load_variant", request=LoadVariantRequest, answer=VariantInfo,
              route="POST /v1/variants",
              summary="Load a variant onto a model, for requests to name: deltas of weights, hooks, or both",
              returns="The variant"),
    Operation(name="Variants.Send", call="send_variant", request=SaePart, answer=SaeReceived, route="POST /v1/variants/parts",
              summary="Send a part of a variant's file, where that is more than one request may hold",
              returns="How much is there: where to go on"),
    Operation(name="Variants.List", call="variants", request="ModelRequest", fields=_MODEL, answer=VariantInfo, kind="list",
              listed="VariantList.variants", route="GET /v1/variants",
              summary="Your variants, and those that others share", returns="The variants"),
    Operation(name="Variants.Get", call="variant", request="VariantRequest", fields=_SAE, answer=VariantInfo,
              route="GET /v1/variants/{name:path}",
              summary="A variant that you may use", returns="The variant"),
    Operation(name="Variants.Read", call="variant_part", request=VariantPartRequest, answer=VariantPart,
              route="POST /v1/variants/files/{name:path}",
              summary="A part of a file of a variant that you may use", returns="Its bytes"),
    Operation(name="Variants.Unload", call="unload_variant", request="VariantRequest", fields=_SAE, kind="nothing",
              route="DELETE /v1/variants/{name:path}",
              summary="Forget a variant (of a name without a version: all of them); requests that run with it go on",
              returns="Forgotten"),
    Operation(name="Sessions.Create", call="create_session", request=CreateSessionRequest, answer=Session,
              route="POST /v1/sessions",
              summary="Make a live session: a plan that generations bound to it follow while it changes",
              returns="The session"),
    Operation(name="Sessions.Update", call="update_session", request=UpdateSessionRequest, answer=Session,
              route="PUT /v1/sessions/{id}",
              summary="Another plan for a session, for generations under way from their next step on",
              returns="The session"),
    Operation(name="Sessions.Get", call="session", request="SessionRequest", fields=_SESSION, answer=Session,
              route="GET /v1/sessions/{id}",
              summary="One of your sessions", returns="The session"),
    Operation(name="Sessions.List", call="sessions", request="ListRequest", answer=Session, kind="list",
              listed="SessionList.sessions", route="GET /v1/sessions",
              summary="Your sessions", returns="The sessions"),
    Operation(name="Sessions.Delete", call="delete_session", request="SessionRequest", fields=_SESSION, kind="nothing",
              route="DELETE /v1/sessions/{id}",
              summary="Forget a session; generations under way keep the plan they have", returns="Forgotten"),
    Operation(name="Activity.Get", call="activity", request="ListRequest", answer=ActivityReport, role="viewer",
              route="GET /v1/activity",
              summary="Who is running what", returns="The activity"),
    Operation(name="Worker.PutSession", call="put_session", request=Session, kind="nothing", inner=True),
    Operation(name="Worker.DropSession", call="drop_session", request="SessionRequest", fields=_SESSION, kind="nothing",
              inner=True),
    Operation(name="Worker.Status", call="status", request="ListRequest", answer=WorkerStatus, inner=True),
)  # fmt: skip
"""In the order of the contract."""

COMPUTED: dict[type[Any], Operation] = {
    row.request: row for row in OPERATIONS if row.counted and not isinstance(row.request, str)
}
"""What takes a model's time, by its request."""
BY_NAME = {operation.name: operation for operation in OPERATIONS}
BY_CALL = {operation.call: operation for operation in OPERATIONS}
