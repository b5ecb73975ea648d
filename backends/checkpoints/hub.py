"""A model from the Hugging Face hub, in Hugging Face's own cache, with its errors put in our words."""

from __future__ import annotations

import io
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ...protos.errors import FailedPrecondition, InvalidArgument, NotFound, ProbewireError, Unavailable
from .progress import Progress, Report

__all__ = ["hub_files", "hub_folder"]

_PATTERNS = (
    "model.safetensors",
    "model-*-of-*.safetensors",
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
)
"""Weights as transformers names them (no pickles, no variants), and all that a tokenizer may need."""
_OTHER_PATTERNS = ("adapter_model.safetensors", "gptq_model*.safetensors", "pytorch_model*.bin", "adapter_model.bin")
"""What is converted (checkpoints/conversion), fetched where there are no weights under the usual names."""
_TRANSPORTS = ("huggingface_hub.", "httpx", "httpcore", "requests.")
_NEEDS_HUB = "what is on Hugging Face needs the package huggingface_hub: pip install 'probewire[server]'"
_SKIPPED = ("*/*",)
"""Sub-folders repeat the weights in other formats."""


def hub_folder(repo_id: str, revision: str | None, report: Report) -> Path:
    """The snapshot's folder. Raises InvalidArgument, NotFound, FailedPrecondition and Unavailable."""
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise FailedPrecondition(_NEEDS_HUB) from error
    report(Progress("download", 0, None))

    def fetch(*patterns: str) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(_SKIPPED),
                tqdm_class=_reporting_bar(report),
            )
        )

    with _translated(repo_id, revision):
        folder = fetch(*_PATTERNS)
        return folder if any(folder.glob("model*.safetensors")) else fetch(*_PATTERNS, *_OTHER_PATTERNS)


def hub_files(repo_id: str, revision: str | None, names: tuple[str, ...]) -> Path:
    """The snapshot's folder with some files of it, those that there are. Raises as `hub_folder`."""
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise FailedPrecondition(_NEEDS_HUB) from error
    with _translated(repo_id, revision):
        return Path(huggingface_hub.snapshot_download(repo_id, revision=revision, allow_patterns=list(names)))


@contextmanager
def _translated(repo_id: str, revision: str | None) -> Generator[None]:
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise InvalidArgument(
            f"{repo_id!r} is neither a folder nor a Hugging Face id such as 'gpt2' or 'Qwen/Qwen3-0.6B'"
        ) from error
    except OSError as error:
        raise _in_our_words(error, repo_id, revision) from error
    except Exception as error:
        # The hub's client lets some of its transport's errors through, and the transport has changed between releases.
        if not type(error).__module__.startswith(_TRANSPORTS):
            raise
        raise _unreachable(repo_id, str(error) or type(error).__name__) from error


def _in_our_words(error: OSError, repo_id: str, revision: str | None) -> ProbewireError:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return FailedPrecondition(
            f"{repo_id} is gated: accept its terms at https://huggingface.co/{repo_id} and log in on this machine "
            "(`hf auth login`), or give a local folder"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFound(f"{repo_id} has no revision {revision!r} on Hugging Face; give a branch, a tag or a commit")
    if isinstance(error, errors.RepositoryNotFoundError):
        return NotFound(
            f"there is no model {repo_id} on Hugging Face that this machine may see, and no folder of that name; "
            "check the spelling, or log in if it is private (`hf auth login`)"
        )
    if isinstance(
        error, (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError)
    ):
        return _unreachable(repo_id, str(error).partition("\n")[0].removeprefix("Got: "))
    return FailedPrecondition(f"{repo_id} cannot be stored: {error}; check Hugging Face's cache folder (HF_HUB_CACHE)")


def _unreachable(repo_id: str, reason: str) -> Unavailable:
    return Unavailable(
        f"{repo_id} is not in Hugging Face's cache on this machine, and the hub cannot be reached: {reason.rstrip('. ')}. "
        "Fetch it on a machine that can, and give the path of the folder here"
    )


def _reporting_bar(report: Report) -> type[Any]:
    """A progress bar that draws nothing and reports the bytes of all files together."""
    from tqdm.std import tqdm

    best = 0

    class Bar(tqdm):  # pyright: ignore[reportMissingTypeArgument] - it is generic in its stubs only
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "file": io.StringIO(), "disable": False})

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            nonlocal best
            # Two bars count bytes (received, written) and others count files: keep the byte count that leads.
            if self.unit == "B" and self.n >= best:
                best = int(self.n)
                report(Progress("download", best, int(self.total) if self.total else None))

    return Bar
