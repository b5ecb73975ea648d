"""Labelled lines as text, and as HTML for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["html_table", "text_table"]


def text_table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """Lines with aligned labels."""
    width = max(len(label) for label, _ in rows)
    return "\n".join([title, *(f"  {label:<{width}}  {value}".rstrip() for label, value in rows)])


def html_table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """A plain table; everything that a model wrote is escaped."""
    body = "".join(
        f'<tr><td style="text-align:left">{escape(label)}</td>'
        f'<td style="text-align:left;white-space:pre-wrap">{escape(value)}</td></tr>'
        for label, value in rows
    )
    return f"<b>{escape(title)}</b><table>{body}</table>"
