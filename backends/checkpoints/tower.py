"""The text model inside a checkpoint that also sees or hears: which of its weights are the text's, and under which names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ...protos.errors import InvalidArgument

__all__ = ["Tower", "is_wrapper", "tower_of"]

_FLAT = ("qwen2_vl", "qwen2_5_vl")
"""Whose published config.json has the text model's fields at its top, beside `vision_config`."""
_MARKS = ("language_model", "text_model", "llm")
"""Modules that hold the text model and nothing else."""
_BODIES = ("model", "transformer", "backbone", "lm_head")
"""With what the names of a text model by itself begin."""
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|tok_embeddings|backbone\.embeddings)\.weight$")
_OF_OTHER_SENSES = re.compile(
    r"(^|[._])(vision|visual|vit|image|images|pixel|patch|audio|speech|sound|video|projector|connector|perceiver|"
    r"resampler|aligner|merger|mm|mtp)([._]|$)"
)
"""Words of a weight's name for what sees, hears, or hands that on to the text model; `mtp` guesses tokens further ahead."""
_SOME = 3


@dataclass(frozen=True, slots=True)
class Tower:
    """A wrapper's text model."""

    wrapper: str
    """The whole checkpoint's model type."""
    names: Mapping[str, str]
    """The file's name of each of its weights → the name it has in a checkpoint of the text model alone."""
    left_out: frozenset[str]
    """Weights of the file that are not loaded."""
    prefixes: Mapping[str, str]
    """With what the file's names begin → with what the text model's do."""

    def leaves_out(self, name: str) -> bool:
        """Whether a weight, under whichever name, belongs to what is left out."""
        return name in self.left_out or (name not in self.names.values() and _OF_OTHER_SENSES.search(name) is not None)

    def renamed(self, name: str) -> str:
        """A module's or weight's name in the text model alone."""
        for old, new in self.prefixes.items():
            if f"{name}.".startswith(old):
                return (new + f"{name}."[len(old) :]).removesuffix(".")
        return name


def is_wrapper(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a checkpoint that holds more than a text model."""
    return isinstance(config.get("text_config"), dict) or config.get("model_type") in _FLAT


def tower_of(config: Mapping[str, Any], names: Iterable[str]) -> Tower | None:
    """The text model in a checkpoint with this config.json and these weights; None where it is one by itself.

    Raises InvalidArgument where there is none, there are two, or a weight belongs to nothing that is known.
    """
    if not is_wrapper(config):
        return None
    names, wrapper = list(names), str(config.get("model_type"))
    root = _root(wrapper, names)
    renamed, left_out, prefixes = dict[str, str](), set[str](), dict[str, str]()
    unknown: list[str] = []
    for name in names:
        found = _prefix(root, name)
        if found is None:
            (left_out.add if _OF_OTHER_SENSES.search(name) else unknown.append)(name)
        else:
            old, new = found
            renamed[name] = new + name[len(old) :]
            if old != new:
                prefixes[old] = new
    if unknown:
        raise InvalidArgument(
            f"the {wrapper} checkpoint holds {len(unknown)} weights that are neither its text model's ({root}…) nor of what "
            f"sees or hears, {_few(unknown)}; take the files as they were published"
        )
    return Tower(wrapper, renamed, frozenset(left_out), prefixes)


def _root(wrapper: str, names: list[str]) -> str:
    """With what the names of the text model's weights begin; what follows is its own, with or without `model.`."""
    roots = {_root_of(name) for name in names if _EMBEDDING.search(name) and not _OF_OTHER_SENSES.search(name)}
    if len(roots) > 1:
        raise InvalidArgument(
            f"the {wrapper} checkpoint holds {len(roots)} language models ({_few(sorted(roots))}), and probewire serves one; "
            "save the one that is meant by itself"
        )
    if not roots:
        raise InvalidArgument(
            f"the {wrapper} checkpoint holds no text model: no weight ends in embed_tokens.weight or the like, "
            f"{_few(names)}; take the files as they were published"
        )
    return roots.pop()


def _root_of(embedding: str) -> str:
    parts = embedding.split(".")
    marks = [i for i, part in enumerate(parts) if part in _MARKS]
    bodies = [i for i, part in enumerate(parts) if part in _BODIES]
    last = marks[-1] + 1 if marks else bodies[0] if bodies else 0
    return "".join(f"{part}." for part in parts[:last])


def _prefix(root: str, name: str) -> tuple[str, str] | None:
    """(old, new) beginnings of a text weight's name; None for what is not the text's."""
    if name.startswith(root) and (root or not _OF_OTHER_SENSES.search(name)):
        first = name[len(root) :].split(".", 1)[0]
        return (f"{root}{first}.", f"{first}.") if first in _BODIES else (root, "model.") if root else None
    return ("lm_head.", "lm_head.") if name.startswith("lm_head.") else None


def _few(names: list[str]) -> str:
    return f"for example {', '.join(names[:_SOME])}" if len(names) > _SOME else ", ".join(names) or "(none at all)"
