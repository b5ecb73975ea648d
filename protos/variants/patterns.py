"""PEFT's patterns on module names, as PEFT looks them up, and bounded: they come from a stranger."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..errors import InvalidArgument

__all__ = ["Patterns"]

MAX_PATTERN = 300
MAX_REPEATS = 2
MAX_TRIES = 4_000_000
_PLAIN = re.compile(r"[A-Za-z0-9_.]+")
_REPEATED_GROUP = re.compile(r"\)[*+?{]")
_REPEATS = re.compile(r"(?<!\\)[*+{]")


class Patterns:
    """Pattern → number; the first that a module's whole name, or its end after a dot, matches is the one."""

    def __init__(self, given: Mapping[str, float], what: str) -> None:
        self._given, self._what, self._tries = dict(given), what, 0
        self._compiled: list[tuple[re.Pattern[str], float]] = []
        for pattern, value in given.items():
            self._require_simple(pattern)
            try:
                self._compiled.append((re.compile(rf"(.*\.)?({pattern})$"), value))
            except (re.error, OverflowError, RecursionError) as error:
                raise InvalidArgument(f"{what}: {pattern[:80]!r} is no regular expression: {error}") from None

    def find(self, module: str, otherwise: float) -> float:
        """The number for a module."""
        for pattern, value in self._compiled:
            self._tries += 1
            if self._tries > MAX_TRIES:
                raise InvalidArgument(
                    f"{self._what} has too many patterns for so many modules; write few that hold for many"
                )
            if pattern.match(module):
                return value
        return otherwise

    def _require_simple(self, pattern: str) -> None:
        """Raise InvalidArgument for what could take a regular expression hours."""
        if _PLAIN.fullmatch(pattern) and len(pattern) <= MAX_PATTERN:
            return
        if (
            len(pattern) > MAX_PATTERN
            or _REPEATED_GROUP.search(pattern)
            or len(_REPEATS.findall(pattern)) > MAX_REPEATS
        ):
            raise InvalidArgument(
                f"{self._what}: the pattern {pattern[:80]!r} is not followed here: at most {MAX_PATTERN} letters and "
                f"{MAX_REPEATS} repetitions, none of a group; write the modules' names"
            )
