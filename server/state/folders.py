"""Which folders of the server a user may load an SAE or a variant from."""

from __future__ import annotations

from pathlib import Path

from ...protos.errors import InvalidArgument, PermissionDenied
from ..auth.users import User

__all__ = ["allowed_folder"]


def allowed_folder(source: str, user: User, folders: tuple[str, ...], noun: str) -> Path | None:
    """The folder that a source names on this machine; None for one on the hub. Raises PermissionDenied.

    Others than admins reach the operator's folders alone: a path is a way to look around on the server.
    """
    try:
        if user.role == "admin":
            path = Path(source).expanduser()
            on_hub = "/" in source and not source.startswith(("/", ".", "~")) and not path.exists()
            return None if on_hub else path
        for folder in (Path(folder).resolve() for folder in folders):
            candidate = (folder / source).resolve()  # an absolute path stays what it is
            if candidate.is_relative_to(folder) and candidate.is_dir():
                return candidate
    except (OSError, RuntimeError, ValueError) as error:  # no such home, too long for a path
        raise InvalidArgument(f"{source[:80]!r} is no path on the server: {error}") from None
    told = ", ".join(folders) or f"none (the operator sets them with --{noun.lower()}-folder)"
    raise PermissionDenied(
        f"{source!r} is in none of the server's {noun} folders: {told}; send the {noun} along (load_{noun.lower()}(…, upload=True)), "
        "or ask an admin"
    )
