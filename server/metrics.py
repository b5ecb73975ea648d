"""What Prometheus reads, one registry a gateway. User names are labels; request ids and texts never are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily
from prometheus_client.registry import Collector

from ..protos.activity import ModelActivity, WorkerStatus
from ..protos.model import Finished

__all__ = ["MEDIA_TYPE", "Metrics", "is_up"]

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

_TOTALS = {
    "steps": ("probewire_engine_steps_total", "Forwards of the batching engine, since the worker's start."),
    "runs": ("probewire_engine_runs_total", "Forwards that carried runs, since the worker's start."),
    "rows": ("probewire_engine_rows_total", "Sequences in all steps together; over steps: the mean batch size."),
    "step_s": ("probewire_engine_seconds_total", "Seconds in steps and runs."),
    "hook_s": ("probewire_hook_seconds_total", "Seconds of these spent in hooks."),
}
_NOW = {
    "running": ("probewire_batch_size", "Generations in the batch."),
    "held": ("probewire_held_generations", "Of these, left out because their readers are slow."),
    "waiting": ("probewire_waiting_inputs", "Inputs that wait for their turn."),
    "n_slots": ("probewire_slots", "Generations that fit in the batch."),
    "cache_used_tokens": ("probewire_cache_used_tokens", "Positions of KV cache reserved."),
    "cache_tokens": ("probewire_cache_tokens", "Positions of KV cache there are."),
}


def is_up(state: str) -> bool:
    """Whether a model in this state answers requests: a sleeping one wakes for them."""
    return state == "ready" or state.startswith("asleep")


class _Totals(Collector):
    """What workers have counted since their start."""

    models: Mapping[str, WorkerStatus] = {}

    def collect(self) -> Iterator[CounterMetricFamily]:
        """One family a counter."""
        for field, (name, about) in _TOTALS.items():
            family = CounterMetricFamily(name, about, labels=("model",))
            for model, status in self.models.items():
                family.add_metric((model,), getattr(status, field))
            yield family


class Metrics:
    """Counters since the start of the gateway. Used by the event loop alone."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        r = self._registry
        self._http = Counter(
            "probewire_http_requests", "HTTP requests that ended.", ("method", "route", "code"), registry=r
        )
        self._requests = Counter(
            "probewire_requests",
            "Operations that ended, on any face.",
            ("operation", "model", "user", "code"),
            registry=r,
        )
        self._seconds = Histogram(
            "probewire_request_seconds",
            "From the door to the end.",
            ("operation", "model"),
            buckets=_SECONDS,
            registry=r,
        )
        self._queue = Histogram(
            "probewire_queue_seconds", "From acceptance to a slot.", ("model",), buckets=_SECONDS, registry=r
        )
        self._first = Histogram(
            "probewire_first_token_seconds",
            "From the door to the first token.",
            ("model",),
            buckets=_SECONDS,
            registry=r,
        )
        self._tokens = Counter("probewire_generated_tokens", "Tokens sampled.", ("model", "user"), registry=r)
        self._prompt = Counter(
            "probewire_prompt_tokens", "Prompt tokens of ended inputs.", ("model", "user"), registry=r
        )
        self._bytes = Counter(
            "probewire_captured_bytes", "Tensor bytes captured and sent, on any face.", ("model", "user"), registry=r
        )
        self._in_flight = Gauge("probewire_requests_in_flight", "Operations under way.", ("user",), registry=r)
        self._ready = Gauge("probewire_models_ready", "Models that are ready, or asleep.", registry=r)
        self._up = Gauge("probewire_model_up", "1: ready, or asleep until the next request.", ("model",), registry=r)
        self._restarts = Counter(
            "probewire_worker_restarts", "Times a worker died and was started anew.", ("model",), registry=r
        )
        self._refused = Counter(
            "probewire_refused_keys", "Calls without a key, or with a wrong one.", ("face", "key"), registry=r
        )
        self._memory = Gauge("probewire_worker_memory_bytes", "Resident memory of a worker.", ("model",), registry=r)
        self._stored = Gauge("probewire_stored_bytes", "Stored captures, all users'.", registry=r)
        self._workers = {field: Gauge(name, about, ("model",), registry=r) for field, (name, about) in _NOW.items()}
        self._totals = _Totals()
        r.register(self._totals)

    def http(self, method: str, route: str, code: int) -> None:
        """One HTTP request that ended. `route` is a template such as /v1/models/{model}, so labels stay few."""
        self._http.labels(method if method in _METHODS else "other", route, str(code)).inc()

    def refused(self, face: str, key: str) -> None:
        """Somebody was not let in. `face`: grpc or http; `key`: none, wrong, or slowed (wrong, once too often)."""
        self._refused.labels(face, key).inc()

    def restarted(self, model: str) -> None:
        """A model's worker died and is started anew."""
        self._restarts.labels(model).inc()

    def began(self, user: str) -> None:
        """An operation began."""
        self._in_flight.labels(user).inc()

    def ended(self, user: str, operation: str, model: str, code: str, seconds: float) -> None:
        """An operation ended."""
        self._in_flight.labels(user).dec()
        self._requests.labels(operation, model, user, code).inc()
        self._seconds.labels(operation, model).observe(seconds)

    def first_token(self, model: str, seconds: float) -> None:
        """A generation's first token has come."""
        self._first.labels(model).observe(seconds)

    def sent(self, model: str, user: str, tokens: int, tensor_bytes: int) -> None:
        """A message went to its caller."""
        if tokens:
            self._tokens.labels(model, user).inc(tokens)
        if tensor_bytes:
            self._bytes.labels(model, user).inc(tensor_bytes)

    def finished(self, model: str, user: str, finished: Finished) -> None:
        """An input ended well."""
        self._queue.labels(model).observe(finished.timings.queued_s)
        self._prompt.labels(model, user).inc(finished.usage.prompt_tokens)

    def refresh(self, models: Mapping[str, ModelActivity], ready: int, stored_bytes: int) -> None:
        """Take over what the workers say now; models that are gone go."""
        self._ready.set(ready)
        self._stored.set(stored_bytes)
        per_model = (self._up, self._memory, *self._workers.values())
        for gauge in per_model:
            gauge.clear()
        self._totals.models = {name: model.status for name, model in models.items()}
        for name, model in models.items():
            self._up.labels(name).set(is_up(model.state))
            self._restarts.labels(name)  # 0 from the start, so that the first restart is an increase
            self._memory.labels(name).set(model.memory_bytes)
            self._engine(name, model.status)

    def _engine(self, model: str, status: WorkerStatus) -> None:
        for field, gauge in self._workers.items():
            gauge.labels(model).set(getattr(status, field))

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)
