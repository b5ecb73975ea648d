"""What the chat shows beside each token: a site, and one or a few numbers of its row."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ...clients.requests.hooks import capture
from ...clients.results.captures import Captures
from ...protos.errors import InvalidArgument
from ...protos.model import ModelInfo
from ...protos.sites import HEAD_SITES, Site
from ...protos.spec import Hook, Norm, Project, Reduction, TopK
from ...protos.tensors import Tensor

__all__ = ["MAX_SHOWS", "Reading", "Show", "parse_show"]

MAX_SHOWS = 8
MAX_TOP_K = 8
_OPTION = re.compile(r"(?P<name>norm|top_k|unit|head)(?:=(?P<number>\d+))?")


@dataclass(frozen=True, slots=True)
class Reading:
    """One number of a row."""

    value: float
    unit: int | None = None
    """Which coordinate it is, for top_k."""


@dataclass(frozen=True, slots=True)
class Show:
    """One site and how its row is told in few numbers; the server computes them, so no whole row moves."""

    site: str
    what: str
    """norm, unit or top_k."""
    number: int = 0
    """The unit, or k."""
    head: int | None = None
    width: int = 0
    """Of the row, to pick a unit."""

    @property
    def n_rows(self) -> int:
        """Numbers a token."""
        return self.number if self.what == "top_k" else 1

    @property
    def id(self) -> str:
        """The hook's label."""
        return f"show {self}"

    def hook(self) -> Hook:
        """The capture that brings the numbers, for generated tokens only."""
        return capture(self.site, reduce=self._reduction(), phase="generated", id=self.id)

    def _reduction(self) -> Reduction:
        if self.what == "top_k":
            return TopK(self.number)
        if self.what == "unit":
            return Project(Tensor.of(np.eye(1, self.width, self.number, dtype=np.float32)))
        return Norm()

    def read(self, captures: Captures) -> Iterator[tuple[int, list[Reading]]]:
        """(position, numbers) of each row in a step; nothing when the step brought none."""
        if self.id not in captures:
            return
        found = captures.hook(self.id)
        positions = found.positions(self.site)
        if self.what == "top_k":
            values, units = (self._of_head(array) for array in found.top_k(self.site))
            for position, row, which in zip(positions, values, units, strict=True):
                yield position, [Reading(float(v), int(u)) for v, u in zip(row, which, strict=True)]
            return
        for position, row in zip(positions, self._of_head(found[self.site]), strict=True):
            yield position, [Reading(float(np.ravel(row)[0]))]

    def _of_head(self, array: np.ndarray) -> np.ndarray:
        return array if self.head is None else array[:, self.head]

    def __str__(self) -> str:
        detail = "" if self.what == "norm" else f"={self.number}"
        head = "" if self.head is None else f":head={self.head}"
        return f"{self.site}:{self.what}{detail}{head}"


def parse_show(text: str, info: ModelInfo) -> Show:
    """From `SITE[:norm|:unit=N|:top_k=K][:head=H]`. Raises InvalidArgument with what is allowed."""
    site, options = _split(text)
    parsed = Site.parse(site, info.n_layers)
    name, kind = str(parsed), parsed.name
    offered = info.site(kind)
    widths = () if offered is None else offered.at(parsed.layer)
    width = widths[-1] if widths else 0
    head = options.pop("head", None)
    if (kind in HEAD_SITES) != (head is not None):
        fix = "needs a head: add :head=0" if kind in HEAD_SITES else "has no heads"
        raise InvalidArgument(f"{text}: {kind} {fix}")
    if len(options) > 1:
        raise InvalidArgument(f"{text}: choose one of norm, unit=N and top_k=K")
    what, number = next(iter(options.items()), ("norm", 0))
    return _checked(Show(name, what, number or 0, head, width), text, given=number is not None)


def _split(text: str) -> tuple[str, dict[str, int | None]]:
    parts, options = text.split(":"), dict[str, int | None]()
    while len(parts) > 1 and (match := _OPTION.fullmatch(parts[-1])):
        options[match["name"]] = int(match["number"]) if match["number"] is not None else None
        parts.pop()
    return ":".join(parts), options


def _checked(show: Show, text: str, *, given: bool) -> Show:
    if show.what != "norm" and not given:
        raise InvalidArgument(f"{text}: {show.what} needs a number, such as {show.what}=5")
    if show.what == "top_k" and not 1 <= show.number <= MAX_TOP_K:
        raise InvalidArgument(f"{text}: the chat shows top_k of 1 … {MAX_TOP_K}")
    if show.what == "unit":
        if not show.width:
            raise InvalidArgument(
                f"{text}: the width of {show.site} is not known, so no unit can be picked; use norm or top_k"
            )
        if show.number >= show.width:
            raise InvalidArgument(f"{text}: {show.site} has the units 0 … {show.width - 1}")
    return show
