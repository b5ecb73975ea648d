"""Small sets of texts in our own words: what edits, directions and reports are measured on."""

from __future__ import annotations

from .sets import DataSet, load_set, set_names

__all__ = ["DataSet", "load_set", "set_names"]
