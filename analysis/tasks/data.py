"""The words and templates that the shipped tasks are made of: a JSON file beside each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from string import Formatter
from typing import Any

__all__ = ["read", "render"]


def read(name: str) -> dict[str, Any]:
    """What `<name>.json` in this folder holds."""
    return json.loads(Path(__file__).with_name(f"{name}.json").read_text(encoding="utf-8"))


def render(template: str, words: Mapping[str, str]) -> tuple[str, dict[str, tuple[int, int]]]:
    """A template with its {fields} filled in, and where each field's word lies (the last time, if it occurs again)."""
    text, spans = "", dict[str, tuple[int, int]]()
    for literal, name, _, _ in Formatter().parse(template):
        text += literal
        if name is not None:
            spans[name] = (len(text), len(text) + len(words[name]))
            text += words[name]
    return text, spans
