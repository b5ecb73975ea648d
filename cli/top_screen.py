"""What `probewire top` draws: models, requests under way, and their totals by user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..protos.activity import ActivityReport, ModelActivity, RequestActivity, WorkerStatus

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
        parts.append(Text(note, style="yellow"))
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


def _models(now: Sample, before: Sample | None) -> Table:
    table = _table(
        ("model", "state", "backend", "slots", "held", "waiting", "cache", "tok/s", "batch", "hooks", "runs/s"),
        ("restarts", "memory"),
    )
    older = {} if before is None else {model.id: model for model in before.report.models}
    for model in now.report.models:
        found = older.get(model.id)
        rates = _Rates(model, found, now.at_s - before.at_s if before is not None else 0.0)
        status = model.status
        table.add_row(
            Text(model.id, style="bold"),
            Text(model.state, style="green" if model.state == "ready" else "yellow"),
            Text(f"{model.backend} {model.device}".strip()),
            Text(f"{status.running}/{status.n_slots}"),
            Text(str(status.held)),
            Text(str(status.waiting), style="yellow" if status.waiting else ""),
            _bar(status.cache_used_tokens, status.cache_tokens),
            *map(Text, (rates.tokens, rates.batch, rates.hooks, rates.runs)),
            Text(str(model.restarts), style="red" if model.restarts else ""),
            Text(_bytes(model.memory_bytes) if model.memory_bytes else NOTHING),
        )
    return table


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


def _requests(requests: Sequence[RequestActivity]) -> Table:
    table = _table(("user", "model", "operation", "state", "sites", "session"), ("age", "tokens", "captured"))
    for request in requests:
        table.add_row(
            Text(request.user),
            Text(request.model),
            Text(request.operation.removeprefix("Inference.")),
            Text(request.state, style="yellow" if request.state == "waiting" else "green"),
            Text(_sites(request.sites)),
            Text(request.session),
            Text(_duration(request.age_s)),
            Text(f"{request.tokens:,}"),
            Text(_bytes(request.captured_bytes)),
        )
    return table


def _users(requests: Sequence[RequestActivity]) -> Table:
    table = _table(("user",), ("running", "waiting", "tokens", "captured"))
    for user in sorted({request.user for request in requests}):
        own = [request for request in requests if request.user == user]
        waiting = sum(request.state == "waiting" for request in own)
        numbers = (len(own) - waiting, waiting, sum(request.tokens for request in own))
        captured = _bytes(sum(request.captured_bytes for request in own))
        table.add_row(Text(user), *(Text(f"{number:,}") for number in numbers), Text(captured))
    return table


def _table(names: Sequence[str], numbers: Sequence[str]) -> Table:
    table = Table(box=None, header_style="bold dim", pad_edge=False, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, no_wrap=True, justify="right")
    return table


def _bar(used: int, total: int) -> Text:
    if not total:
        return Text(NOTHING)
    share = min(1.0, used / total)
    full = round(share * BAR_WIDTH)
    style = "red" if share > 0.9 else "green"
    return Text.assemble(("█" * full, style), ("░" * (BAR_WIDTH - full), "dim"), f" {share:4.0%}")


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


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(int(seconds) // 60, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {int(seconds) % 60} s"
