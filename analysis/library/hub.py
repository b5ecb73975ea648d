"""Libraries on the Hugging Face hub: thin uses of huggingface_hub, with the user's own login."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from ...protos.errors import FailedPrecondition, NotFound, ProbewireError, Unavailable

__all__ = ["ALLOWED", "pulled", "push"]

ALLOWED = ["*.json", "*.md", "*.safetensors"]
"""All that is sent or fetched: nothing that could run."""


def push(folder: Path, repo_id: str, *, private: bool = True, token: str | None = None, message: str = "") -> str:
    """Upload a folder's files of the allowed kinds to a repository of models, made where it is not there. Gives its address."""
    hub = _hub()
    try:
        hub.create_repo(repo_id, private=private, exist_ok=True, token=token)
        done = hub.upload_folder(
            repo_id=repo_id,
            folder_path=str(folder),
            allow_patterns=ALLOWED,
            commit_message=message or "Circuits of probewire",
            token=token,
        )
    except Exception as error:
        raise _told(error, repo_id) from error
    return str(done)


def pulled(repo_id: str, *, revision: str | None = None, token: str | None = None) -> Path:
    """A folder with the files of the allowed kinds of a repository."""
    try:
        return Path(_hub().snapshot_download(repo_id, revision=revision, allow_patterns=ALLOWED, token=token))
    except Exception as error:
        raise _told(error, repo_id) from error


def _hub() -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ModuleNotFoundError:
        raise FailedPrecondition(
            "push and pull need huggingface_hub, which is not installed; pip install huggingface_hub"
        ) from None


def _told(error: Exception, repo_id: str) -> ProbewireError:
    name = type(error).__name__
    if name in ("RepositoryNotFoundError", "RevisionNotFoundError", "GatedRepoError"):
        return NotFound(f"the hub has no {repo_id} that this login may use; `hf auth login` first? ({name})")
    return Unavailable(f"the hub could not be used for {repo_id}: {name}: {str(error)[:300]}")
