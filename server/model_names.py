"""What a model is called: `[ID=]MODEL[@BACKEND]`, the same for the command line and for every API."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ..backends.checkpoints.default_model import DEFAULT_ID, is_default
from ..protos.errors import InvalidArgument
from ..protos.loading import LoadRequest
from .config import BACKENDS

__all__ = ["default_id", "parsed"]


def parsed(request: LoadRequest) -> LoadRequest:
    """A request whose `model` may be written `[ID=]MODEL[@BACKEND]`, with each part in its own field.

    What names a folder as it stands is that folder. Raises InvalidArgument when a part is given twice and differs.
    """
    name, equals, rest = request.model.partition("=")
    if not equals or "/" in name or not name or _folder(request.model) is not None:
        name, rest = "", request.model
    model, at, backend = rest.rpartition("@")
    if not at or backend not in BACKENDS or _folder(rest) is not None:
        model, backend = rest, "auto"
    return replace(
        request,
        model=model,
        id=_one("id", name, request.id, "", request.model),
        backend=_one("backend", backend, request.backend, "auto", request.model),
    )


def _one(what: str, written: str, given: str, unsaid: str, text: str) -> str:
    if unsaid not in (written, given) and written != given:
        raise InvalidArgument(f"{text!r} says {what} {written!r}, and {what}={given!r} was given beside it; give one")
    return given if written == unsaid else written


def default_id(model: str) -> str:
    """The name a model is served under when none is given: a path's or the default model's last part, else itself."""
    if is_default(model):
        return DEFAULT_ID.rpartition("/")[2]
    if model.lower().endswith(".gguf"):
        return Path(model).name
    folder = _folder(model)
    return model if folder is None else folder.name


def _folder(model: str) -> Path | None:
    with suppress(OSError, RuntimeError, ValueError):  # no such home, too long for a path, a zero byte: no folder
        path = Path(model).expanduser()
        return path.resolve() if model and path.is_dir() else None
    return None
