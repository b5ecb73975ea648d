"""What a model in this process answers, a function an operation: of the model, the caller and what the operation's row says.

They may wait, and run on a thread of their own. A new operation of workers is one more of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...protos.activity import ActivityReport, ModelActivity, WorkerStatus
from ...protos.errors import Unsupported
from ...protos.model import ModelInfo, StoredCapture, Tokenized, TokenizeRequest, TokenizerInfo
from ...protos.saes import LoadSaeRequest, SaeInfo, SaePart, SaeReceived
from ...protos.sessions import Session
from ...protos.tensors import Array, Tensor
from ...protos.variants.stored import LoadVariantRequest, VariantInfo, VariantPart, VariantPartRequest
from ..auth.callers import Caller
from .model import LocalModel

__all__ = ["FUNCTIONS"]


def models(here: LocalModel, caller: Caller) -> list[ModelInfo]:
    """The one there is."""
    return [here.info]


def describe(here: LocalModel, caller: Caller, model: str = "") -> ModelInfo:
    """What it offers."""
    here.check_model(model)
    return here.info


def tokenize(here: LocalModel, caller: Caller, request: TokenizeRequest) -> Tokenized:
    """Token ids and texts of an input."""
    return here.tokenize(request)


def tokenizer_info(here: LocalModel, caller: Caller, model: str = "") -> TokenizerInfo:
    """What its special tokens are called, and its chat template."""
    here.check_model(model)
    return here.tokenizer.named()


def weight_names(here: LocalModel, caller: Caller, model: str = "") -> dict[str, tuple[int, ...]]:
    """Every weight's name and shape."""
    here.check_model(model)
    return dict(here.backend.weight_names())


def weights(here: LocalModel, caller: Caller, name: str, model: str = "") -> Array:
    """One weight."""
    here.check_model(model)
    return here.backend.weight(name)


def captures(here: LocalModel, caller: Caller, model: str = "") -> list[StoredCapture]:
    """The caller's."""
    here.check_model(model)
    return here.store.list(caller.user.name, model)


def stored(here: LocalModel, caller: Caller, capture_id: str, model: str = "") -> tuple[StoredCapture, Tensor]:
    """One of the caller's captures."""
    here.check_model(model)
    return here.store.get_item(caller.user.name, capture_id)


def delete_capture(here: LocalModel, caller: Caller, capture_id: str, model: str = "") -> None:
    """Forget one of the caller's captures."""
    here.check_model(model)
    here.store.delete(caller.user.name, capture_id)


def load_sae(here: LocalModel, caller: Caller, request: LoadSaeRequest) -> SaeInfo:
    """Load an SAE onto a site."""
    return here.load_sae(request, caller)


def send_sae(here: LocalModel, caller: Caller, part: SaePart) -> SaeReceived:
    """Keep a part of an SAE's weights."""
    return here.saes.receive(caller.user, part)


def saes(here: LocalModel, caller: Caller, model: str = "") -> list[SaeInfo]:
    """The caller's, and shared ones."""
    here.check_model(model)
    return here.saes.list(caller.user, model)


def unload_sae(here: LocalModel, caller: Caller, name: str, model: str = "") -> None:
    """Forget an SAE; requests that run with it go on."""
    here.check_model(model)
    here.saes.delete(caller.user, name, model)


def load_variant(here: LocalModel, caller: Caller, request: LoadVariantRequest) -> VariantInfo:
    """Load a variant onto this model."""
    return here.load_variant(request, caller)


def send_variant(here: LocalModel, caller: Caller, part: SaePart) -> SaeReceived:
    """Keep a part of a variant's file."""
    return here.variants.receive(caller.user, part)


def variants(here: LocalModel, caller: Caller, model: str = "") -> list[VariantInfo]:
    """The caller's, and shared ones."""
    here.check_model(model)
    return here.variants.list(caller.user, model)


def variant(here: LocalModel, caller: Caller, name: str, model: str = "") -> VariantInfo:
    """One that the caller may use."""
    here.check_model(model)
    return here.variants.get(caller.user, name, model)


def variant_part(here: LocalModel, caller: Caller, request: VariantPartRequest) -> VariantPart:
    """A part of a file of a variant."""
    here.check_model(request.model)
    return here.variants.part(caller.user, request)


def unload_variant(here: LocalModel, caller: Caller, name: str, model: str = "") -> None:
    """Forget a variant; requests that run with it go on."""
    here.check_model(model)
    here.variants.delete(caller.user, name, model)


def session(here: LocalModel, caller: Caller, session_id: str) -> Session:
    """A session as the worker has it."""
    return here.sessions.get(caller.user.name, session_id)


def put_session(here: LocalModel, caller: Caller, session: Session) -> None:
    """Take a session's new revision in."""
    here.put_session(session, caller)


def drop_session(here: LocalModel, caller: Caller, session_id: str) -> None:
    """Forget a session."""
    here.sessions.drop(caller.user.name, session_id)


def status(here: LocalModel, caller: Caller) -> WorkerStatus:
    """The engine and the queue as they are now."""
    return here.status()


def activity(here: LocalModel, caller: Caller) -> ActivityReport:
    """The model's part; requests are listed by the gateway."""
    info = here.info
    return ActivityReport((ModelActivity(info.id, "ready", info.backend, info.device, status=here.status()),))


def _elsewhere(why: str) -> Callable[..., Any]:
    def refuse(*_: object) -> Any:
        raise Unsupported(why)

    return refuse


_OF_SESSIONS = ("create_session", "update_session", "sessions", "delete_session")

FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{f.__name__: f for f in (models, describe, tokenize, tokenizer_info, captures, delete_capture)},
    **{f.__name__: f for f in (send_variant, variants, variant, variant_part, unload_variant)},
    **{f.__name__: f for f in (send_sae, saes, unload_sae, session, put_session, drop_session, status, activity)},
    **dict.fromkeys(_OF_SESSIONS, _elsewhere("sessions are kept by the gateway; ask there")),
    "unload": _elsewhere("a worker ends with its gateway; unload through the gateway"),
}
"""By the operation's call."""
