"""Hooks that mean something on one model alone, such as those of a steering vector made on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from ...protos.errors import FailedPrecondition
from ...protos.spec import Hook

__all__ = ["ForModel", "for_model", "plain", "require_model"]


@dataclass(frozen=True, slots=True)
class ForModel(Hook):
    """A hook with the model that it is for. Calls refuse it on another one, and send it on as a plain hook."""

    model_hash: str = ""


def for_model(value: Hook, model_hash: str) -> Hook:
    """The hook, for one model alone; as it is where that is not known."""
    if not model_hash:
        return value
    return ForModel(**{field.name: getattr(value, field.name) for field in fields(Hook)}, model_hash=model_hash)


def plain(value: Hook) -> Hook:
    """The hook as a plan has it."""
    if not isinstance(value, ForModel):
        return value
    return Hook(**{field.name: getattr(value, field.name) for field in fields(Hook)})


def require_model(wanted: Iterable[str], model: str, model_hash: str) -> None:
    """Raise FailedPrecondition when a steering vector is of another model than the one that answers."""
    others = [found for found in wanted if found != model_hash]
    if others:
        raise FailedPrecondition(
            f"a steering vector was made on another model ({others[0]}) than {model} ({model_hash}), where it means "
            "nothing; use one made on this model, or say that it is meant: steer(vector, any_model=True)"
        )
