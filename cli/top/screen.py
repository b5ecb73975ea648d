"""What `probewire top` draws: models, requests under way, and their totals by user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from ...protos.activity import ActivityReport, ModelActivity, RequestActivity, WorkerStatus
from ..responsive_table import Column, ResponsiveTable

__all__ = ["Sample", "screen"]

MAX_SITES_WIDTH = 32
BAR_WIDTH = 8
NOTHING = "–"
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True, slots=True)
class Sample:
    """A report and when it came."""

    report: ActivityReport
    at_s: float
    """Of a monotonic clock."""


def screen(address: str, now: Sample, before: Sample | None, note: str = "", max_requests: int = 50) -> RenderableType:
    """One frame. Speeds are differences from the sample `before`, and unknown without one."""
    report = now.report
    parts: list[RenderableType] = [_head(address, report)]
    if note:
        parts.append(_cell(note, "yellow"))
    parts += [Text(), _models(now, before) if report.models else Text("no models are loaded", style="dim")]
    if report.requests:
        parts += [Text(), _requests(report.requests[:max_requests])]
        more = len(report.requests) - max_requests
        if more > 0:
            parts.append(Text(f"… and {more} more", style="dim"))
        parts += [Text(), _users(report.requests)]
    else:
        parts += [Text(), Text("nothing is running", style="dim")]
    return Group(*parts)


def _head(address: str, report: ActivityReport) -> Text:
    waiting = sum(request.state == "waiting" for request in report.requests)
    running = len(report.requests) - waiting
    counts = f"{running} running, {waiting} waiting"
    return Text.assemble(("probewire", "bold"), f"  {address}  up {_duration(report.uptime_s)}  {counts}")


def _models(now: Sample, before: Sample | None) -> ResponsiveTable:
    models = now.report.models
    older = {} if before is None else {model.id: model for model in before.report.models}
    seconds = now.at_s - before.at_s if before is not None else 0.0
    rates = [_Rates(model, older.get(model.id), seconds) for model in models]
    states = [_cell(model.state, "green" if model.state == "ready" else "yellow") for model in models]
    bars = [_bar(model.status.cache_used_tokens, model.status.cache_tokens) for model in models]
    held, waiting = [model.status.held for model in models], [model.status.waiting for model in models]
    return ResponsiveTable(
        [
            Column("model", [_cell(model.id, "bold") for model in models], least=12),
            Column("state", states, least=5),
            Column("backend", [_cell(f"{model.backend} {model.device}".strip()) for model in models], rank=3),
            Column("slots", [_cell(f"{model.status.running}/{model.status.n_slots}") for model in models]),
            Column("held", [_cell(str(number), "yellow" if number else "") for number in held], rank=4),
            Column("waiting", [_cell(str(n), "yellow" if n else "") for n in waiting]),
            Column("cache", bars),
            Column("tok/s", [_cell(rate.tokens) for rate in rates], right=True),
            Column("batch", [_cell(rate.batch) for rate in rates], right=True),
            Column("hooks", [_cell(rate.hooks) for rate in rates], right=True),
            Column("runs/s", [_cell(rate.runs) for rate in rates], rank=5, right=True),
            Column("restarts", [_cell(str(m.restarts), "red" if m.restarts else "") for m in models], 1, right=True),
            Column(
                "memory", [_cell(_bytes(m.memory_bytes) if m.memory_bytes else NOTHING) for m in models], 2, 0, True
            ),
        ]
    )


class _Rates:
    """What a model did between two samples, as text. Counters that fell belong to a new worker: nothing is known then."""

    def __init__(self, now: ModelActivity, before: ModelActivity | None, seconds: float) -> None:
        zero = WorkerStatus()
        a, b = now.status, before.status if before is not None else zero
        known = before is not None and seconds > 0 and before.restarts == now.restarts and a.steps >= b.steps
        known = known and a.tokens >= b.tokens
        steps, step_s = a.steps - b.steps, a.step_s - b.step_s
        self.tokens = f"{(a.tokens - b.tokens) / seconds:.1f}" if known else NOTHING
        self.runs = f"{(a.runs - b.runs) / seconds:.1f}" if known else NOTHING
        self.batch = f"{(a.rows - b.rows) / steps:.1f}" if known and steps > 0 else NOTHING
        self.hooks = f"{(a.hook_s - b.hook_s) / step_s:.0%}" if known and step_s > 0 else NOTHING


def _requests(requests: Sequence[RequestActivity]) -> ResponsiveTable:
    states = [_cell(request.state, "yellow" if request.state == "waiting" else "green") for request in requests]
    return ResponsiveTable(
        [
            Column("user", [_cell(request.user) for request in requests], least=8),
            Column("model", [_cell(request.model) for request in requests], rank=1, least=8),
            Column("operation", [_cell(request.operation.removeprefix("Inference.")) for request in requests], least=8),
            Column("state", states),
            Column("sites", [_cell(_sites(request.sites)) for request in requests], least=12),
            Column("session", [_cell(request.session) for request in requests], rank=2, least=8),
            Column("age", [_cell(_age(request.age_s)) for request in requests], right=True),
            Column("tokens", [_cell(f"{request.tokens:,}") for request in requests], right=True),
            Column("captured", [_cell(_bytes(request.captured_bytes)) for request in requests], right=True),
        ]
    )


def _users(requests: Sequence[RequestActivity]) -> ResponsiveTable:
    names = sorted({request.user for request in requests})
    own = [[request for request in requests if request.user == name] for name in names]
    waiting = [sum(request.state == "waiting" for request in found) for found in own]
    running = [len(found) - n for found, n in zip(own, waiting, strict=True)]
    tokens = [sum(request.tokens for request in found) for found in own]
    captured = [sum(request.captured_bytes for request in found) for found in own]
    return ResponsiveTable(
        [
            Column("user", [_cell(name) for name in names], least=8),
            Column("running", [_cell(str(n)) for n in running], right=True),
            Column("waiting", [_cell(str(n)) for n in waiting], right=True),
            Column("tokens", [_cell(f"{n:,}") for n in tokens], right=True),
            Column("captured", [_cell(_bytes(n)) for n in captured], right=True),
        ]
    )


def _cell(text: str, style: str = "") -> Text:
    return Text(text, style=style, no_wrap=True, overflow="ellipsis")


def _bar(used: int, total: int) -> Text:
    if not total:
        return Text(NOTHING)
    share = min(1.0, used / total)
    full = round(share * BAR_WIDTH)
    style = "red" if share > 0.9 else "green"
    return Text.assemble(("█" * full, style), ("░" * (BAR_WIDTH - full), "dim"), f" {share:.0%}")


def _sites(sites: Sequence[str]) -> str:
    """As many as there is room for, and how many more."""
    shown = ""
    for index, site in enumerate(sites):
        longer = f"{shown}, {site}" if shown else site
        if len(longer) > MAX_SITES_WIDTH:
            head = shown or site[: MAX_SITES_WIDTH - 1] + "…"
            more = len(sites) - max(index, 1)
            return f"{head} +{more}" if more else head
        shown = longer
    return shown or NOTHING


def _bytes(number: float) -> str:
    for unit in UNITS[:-1]:
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} {UNITS[-1]}"


def _age(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(int(seconds) // 60, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {int(seconds) % 60} s"
