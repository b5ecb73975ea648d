"""Why a checkpoint is refused, in words that are the same whichever library found it out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ...protos.errors import InvalidArgument

__all__ = ["contradicts_itself", "in_our_words", "lacks", "no_place", "not_causal", "unknown_type", "wrong_shape"]

_SHAPE = re.compile(r"Expected shape \((.*?)\) but received shape \((.*?)\) for parameter (\S+)")
_MORE = re.compile(r"Received \d+ parameters not in model: (.*)\.$")
_FEWER = re.compile(r"Missing \d+ parameters: (.*)\.$")
"""What MLX says."""


def unknown_type(kind: str, version: str) -> InvalidArgument:
    """Of an architecture that the installed transformers has no code for."""
    return InvalidArgument(
        f"model_type {kind!r} is not known to the installed transformers {version}, and code that comes with a checkpoint is "
        "never run; install a transformers that knows it, or convert the checkpoint to a type that is known"
    )


def contradicts_itself(folder: Path, kind: str, error: Exception) -> InvalidArgument:
    """Of a config that the library's own validation refuses."""
    said = " ".join(str(error.__cause__ or error).split()).rstrip(".")
    return InvalidArgument(
        f"config.json of the checkpoint in {folder} is not one of a {kind or 'known'} model: {said}; take the config.json "
        "that came with the weights"
    )


def not_causal(kind: str, *, encoder_decoder: bool) -> InvalidArgument:
    """Of a model that has another purpose."""
    what = "an encoder-decoder" if encoder_decoder else "not a causal language model"
    return InvalidArgument(
        f"{kind} is {what}; probewire serves causal language models (decoders that predict text) only"
    )


def wrong_shape(folder: Path, name: str, found: Sequence[int], expected: Sequence[int], n: int = 1) -> InvalidArgument:
    """Of weights that are not as large as the config says."""
    more = f", and {n - 1} more weights do not fit either" if n > 1 else ""
    return InvalidArgument(
        f"the checkpoint in {folder} holds {name} as {list(found)}, but under its config.json it is {list(expected)}{more}; "
        "take the config.json that came with the weights"
    )


def lacks(folder: Path, names: Sequence[str]) -> InvalidArgument:
    """Of weights that should be there: a library would leave them random."""
    return InvalidArgument(
        f"the checkpoint in {folder} lacks {len(names)} weights of its architecture, for example {sorted(names)[:3]}"
    )


def no_place(folder: Path, kind: str, names: Sequence[str], otherwise: str = "") -> InvalidArgument:
    """Of weights that no part of the model takes."""
    return InvalidArgument(
        f"the checkpoint in {folder} holds {len(names)} weights that {kind} has no place for under its config.json, for "
        f"example {sorted(names)[:3]}; take the config.json that came with them{otherwise}"
    )


def in_our_words(folder: Path, kind: str, error: Exception) -> InvalidArgument | None:
    """What MLX found when it put weights in their places; None where it was something else."""
    said = " ".join(str(error).split())
    if found := _SHAPE.search(said):
        expected, received = ([int(n) for n in found[i].split(",") if n.strip()] for i in (1, 2))
        return wrong_shape(folder, found[3].rstrip("."), received, expected)
    if found := _MORE.search(said):
        otherwise = f", or load it with the torch backend: mlx-lm may not have all of {kind}"
        return no_place(folder, kind, found[1].replace(",", " ").split(), otherwise)
    if found := _FEWER.search(said):
        return lacks(folder, found[1].replace(",", " ").split())
    return None
