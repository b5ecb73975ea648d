"""What a model in this process answers, a function an operation: of the model, the caller and what the operation's row says.

They may wait, and run on a thread of their own. A new operation of workers is one more of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...protos.activity import ActivityReport, ModelActivity, WorkerStatus
from ...protos.errors import Unsupported
from ...protos.model import ModelInfo, StoredCapture, Tokenized, TokenizeRequest
from ...protos.saes import SaeInfo, SaePart, SaeReceived
from ...protos.sessions import Session
from ..auth.callers import Caller
from .model import LocalModel

__all__ = ["FUNCTIONS"]


def models(model: LocalModel, caller: Caller) -> list[ModelInfo]:
    return [model.info]


def describe(model: LocalModel, caller: Caller, name: str) -> ModelInfo:
    model.check_model(name)
    return model.info


def tokenize(model: LocalModel, caller: Caller, request: TokenizeRequest) -> Tokenized:
    return model.tokenize(request)


def captures(model: LocalModel, caller: Caller, name: str) -> list[StoredCapture]:
    model.check_model(name)
    return model.store.list(caller.user.name)


def delete_capture(model: LocalModel, caller: Caller, capture_id: str, name: str) -> None:
    model.check_model(name)
    model.store.delete(caller.user.name, capture_id)


def send_sae(model: LocalModel, caller: Caller, part: SaePart) -> SaeReceived:
    return model.saes.receive(caller.user, part)


def saes(model: LocalModel, caller: Caller, name: str) -> list[SaeInfo]:
    model.check_model(name)
    return model.saes.list(caller.user, model.info.id)


def unload_sae(model: LocalModel, caller: Caller, sae: str, name: str) -> None:
    model.check_model(name)
    model.saes.delete(caller.user, sae, model.info.id)


def session(model: LocalModel, caller: Caller, session_id: str) -> Session:
    return model.sessions.get(caller.user.name, session_id)


def put_session(model: LocalModel, caller: Caller, session: Session) -> None:
    model.put_session(session, caller)


def drop_session(model: LocalModel, caller: Caller, session_id: str) -> None:
    model.sessions.drop(caller.user.name, session_id)


def status(model: LocalModel, caller: Caller) -> WorkerStatus:
    return model.status()


def activity(model: LocalModel, caller: Caller) -> ActivityReport:
    info = model.info
    return ActivityReport((ModelActivity(info.id, "ready", info.backend, info.device, status=model.status()),))


def _elsewhere(why: str) -> Callable[..., Any]:
    def refuse(*_: object) -> Any:
        raise Unsupported(why)

    return refuse


_OF_SESSIONS = ("create_session", "update_session", "sessions", "delete_session")

FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f.__name__: f for f in (models, describe, tokenize, captures, delete_capture)},
    **{f.__name__: f for f in (send_sae, saes, unload_sae, session, put_session, drop_session, status, activity)},
    **dict.fromkeys(_OF_SESSIONS, _elsewhere("sessions are kept by the gateway; ask there")),
    "unload": _elsewhere("a worker ends with its gateway; unload through the gateway"),
}
"""By the operation's call."""
