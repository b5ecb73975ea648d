"""What a box is doing: every model, and every request under way. No prompt text, ever."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["ActivityReport", "ModelActivity", "RequestActivity", "WorkerStatus"]


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker's engine and queue. Counters run since the worker's start."""

    running: int = 0
    """Generations in the batch."""
    held: int = 0
    """Of these, left out of the coming steps because their readers are slow."""
    waiting: int = 0
    """Inputs that wait for a slot."""
    n_slots: int = 0
    cache_used_tokens: int = 0
    """Positions of KV cache reserved."""
    cache_tokens: int = 0
    cache_held: int = 0
    """What the engine's own cache holds (bytes): 0 when nothing runs."""
    steps: int = 0
    """Forwards of the batching engine."""
    runs: int = 0
    """Forwards that carried runs."""
    rows: int = 0
    """Sequences in all steps together; divided by `steps`, the mean batch size."""
    step_s: float = 0.0
    """Seconds in steps and runs."""
    hook_s: float = 0.0
    """Seconds of these spent in hooks (on a GPU: in launching them)."""
    tokens: int = 0
    """Sampled."""
    store_bytes: int = 0
    """Stored captures, all users'."""


@dataclass(frozen=True, slots=True)
class RequestActivity:
    """One request under way."""

    id: str
    user: str
    model: str
    operation: str
    """Inference.Generate, Captures.Get, …"""
    state: str
    """waiting (nothing has come back yet) or running."""
    sites: tuple[str, ...] = ()
    """Site patterns that it reads or edits."""
    session: str = ""
    """The session's name if it is bound to one ("yes" for one without a name): its id is its owner's business."""
    age_s: float = 0.0
    tokens: int = 0
    captured_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ModelActivity:
    """One model."""

    id: str
    state: str
    """As in health: ready, loading, asleep, …"""
    backend: str = ""
    device: str = ""
    restarts: int = 0
    memory_bytes: int = 0
    """Resident memory of the worker process."""
    status: WorkerStatus = WorkerStatus()


@dataclass(frozen=True, slots=True)
class ActivityReport:
    """Who is running what."""

    models: tuple[ModelActivity, ...] = ()
    requests: tuple[RequestActivity, ...] = ()
    """Oldest first."""
    uptime_s: float = 0.0
