"""Which two modules' outputs make a layer's output of its input, to the bit, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from .trace import Trace

__all__ = ["UNITY", "Joined", "Sum", "begun", "joined", "parallel", "sequential", "single", "unfinished"]

UNITY = 1.0


Sum = tuple[str | None, str, str, tuple[float, float]]
"""The reader of resid_mid, attention's and the MLP's output, and by how much the stream takes them."""

Joined = tuple[float, tuple[tuple[str, float], ...]]
"""The scale of a sum of two modules' outputs, and their paths, each with what it is multiplied by."""


def sequential(trace: Trace, base: str, x: Any, y: Any, numbers: Sequence[float]) -> Sum | None:
    outs, seen = trace.below(base, "output", x), list[Any]()
    for reader, r in trace.below(base, "input", x):
        if trace.equal(r, x) or trace.equal(r, y) or any(trace.equal(r, other) for other in seen):
            continue
        seen.append(r)
        at = trace.order[reader, "input"]
        before = [item for item in outs if trace.order[item[0], "output"] < at]
        after = [item for item in outs if trace.order[item[0], "output"] > at]
        first = _last(_summed(trace, x, r, before, numbers))
        second = _last(_summed(trace, r, y, after, numbers)) if first is not None else None
        if first is not None and second is not None:
            return reader, first[0], second[0], (first[1], second[1])
    return None


def parallel(trace: Trace, base: str, x: Any, y: Any, numbers: Sequence[float]) -> Sum | None:
    outs = [(path, value) for path, value in trace.below(base, "output", x) if _is_something(value)]
    found: Sum | None = None
    for i, (first, a) in enumerate(outs):
        for second, m in outs[i + 1 :]:
            if trace.equal(a, m):
                continue
            for c in (UNITY, *numbers):
                p, q = (a, m) if c == UNITY else (a * c, m * c)
                if any(trace.equal(total, y) for total in (x + p + q, x + q + p, x + (p + q))):
                    found = None, first, second, (c, c)  # the outermost modules: those seen last
                    break
    return found


def single(trace: Trace, base: str, x: Any, y: Any, numbers: Sequence[float]) -> tuple[str, float] | None:
    """The one module whose output, so many times, is all that the layer adds."""
    return _last(_summed(trace, x, y, trace.below(base, "output", x), numbers))


def unfinished(
    trace: Trace, base: str, x: Any, y: Any, numbers: Sequence[float]
) -> tuple[str, tuple[str, float], str] | None:
    """The reader of resid_mid, what makes that of the layer's input, and the second module's path or "": where the layer's
    output is more than their sum. A second is known where another module reads the sum, or a factor of the layer's is behind it."""
    outs = trace.below(base, "output", x)
    readers = [(path, r) for path, r in trace.below(base, "input", x) if not trace.equal(r, x)]
    for index, (reader, r) in enumerate(readers):
        at = trace.order[reader, "input"]
        first = _last(_summed(trace, x, r, [one for one in outs if trace.order[one[0], "output"] < at], numbers))
        if first is None:
            continue
        after = [one for one in outs if trace.order[one[0], "output"] > at]
        for _, total in readers[index + 1 :]:
            if not trace.equal(total, r) and (found := _last(_summed(trace, r, total, after, [UNITY]))) is not None:
                return reader, first, found[0]
        scaled = [path for path, m in after for s in trace.factors.get(base, ()) if trace.equal((r + m) * s, y)]
        return reader, first, scaled[-1] if scaled else ""
    return None


def joined(
    trace: Trace, x: Any, total: Any, outs: Sequence[tuple[str, Any]], numbers: Sequence[float]
) -> Joined | None:
    """The two modules of which x + c · (A + B) is the total, or x + (a · A + b · B). None where several could be: each
    would be another site to an edit."""
    each = _different(trace, x, total, outs)
    found = list[Joined]()
    for i, (first, a) in enumerate(each):
        for second, b in each[i + 1 :]:
            both = a + b
            scale = next((c for c in (UNITY, *numbers) if trace.equal(x + _times(both, c), total)), None)
            if scale is not None:
                found.append((scale, ((first, UNITY), (second, UNITY))))
                continue
            ways = ((p, q) for p in (UNITY, *numbers) for q in (UNITY, *numbers) if p != q)
            own = next((w for w in ways if trace.equal(x + (_times(a, w[0]) + _times(b, w[1])), total)), None)
            if own is not None:
                found.append((UNITY, ((first, own[0]), (second, own[1]))))
    return found[0] if len(found) == 1 else None


def begun(
    trace: Trace, base: str, x: Any, y: Any, numbers: Sequence[float]
) -> tuple[str, Joined, tuple[str, float]] | None:
    """The reader of resid_mid where two modules make that of the layer's input, and one the output of that."""
    outs, seen = trace.below(base, "output", x), list[Any]()
    for reader, r in trace.below(base, "input", x):
        if trace.equal(r, x) or trace.equal(r, y) or any(trace.equal(r, other) for other in seen):
            continue
        seen.append(r)
        at = trace.order[reader, "input"]
        after = [one for one in outs if trace.order[one[0], "output"] > at]
        second = _last(_summed(trace, r, y, after, numbers))
        if second is None:
            continue
        before = [one for one in outs if trace.order[one[0], "output"] < at]
        if (first := joined(trace, x, r, before, numbers)) is not None:
            return reader, first, second
    return None


def _different(trace: Trace, x: Any, total: Any, outs: Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Each tensor once, at the outermost module that gives it: what is edited inside it is edited there too."""
    found = list[tuple[str, Any]]()
    for path, value in reversed(outs):
        known = (x, total, *(other for _, other in found))
        if _is_something(value) and not any(trace.equal(value, other) for other in known):
            found.append((path, value))
    return found[::-1]


def _times(value: Any, c: float) -> Any:
    return value if c == UNITY else value * c


def _summed(
    trace: Trace, x: Any, total: Any, outs: Sequence[tuple[str, Any]], numbers: Sequence[float]
) -> Iterator[tuple[str, float]]:
    """(path, c) of the modules of which c times the output, added to x, is the total."""
    for path, value in outs:
        if not _is_something(value):
            continue
        for c in (UNITY, *numbers):
            if trace.equal(x + (value if c == UNITY else value * c), total):
                yield path, c
                break


def _last(found: Iterator[tuple[str, float]]) -> tuple[str, float] | None:
    """The outermost module: its output is seen last."""
    return next(reversed(list(found)), None)


def _is_something(value: Any) -> bool:
    return bool((value != 0).any())
