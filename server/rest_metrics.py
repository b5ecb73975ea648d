"""What the HTTP faces count, as Prometheus text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from ..protos.model import Event, TensorFrame, Token

__all__ = ["MEDIA_TYPE", "Counters"]

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Counters:
    """Totals since the start of this process, of what went through HTTP. Used by the event loop alone."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, int]] = Counter()
        self._tokens = 0
        self._bytes = 0

    def request(self, method: str, route: str, code: int) -> None:
        """One request that ended. `route` is a template such as /v1/models/{model}, so labels stay few."""
        self._requests[method if method in _METHODS else "other", route, code] += 1

    def events(self, events: Iterable[Event]) -> None:
        """What one step sent."""
        for event in events:
            if isinstance(event, Token):
                self._tokens += 1
            elif isinstance(event, TensorFrame):
                self._bytes += len(event.tensor.data)

    def text(self, models_ready: int | None) -> str:
        """The exposition format. `models_ready` None: health could not be asked, and the gauge is left out."""
        lines = [
            "# HELP probewire_http_requests_total HTTP requests that ended, by route and status code.",
            "# TYPE probewire_http_requests_total counter",
        ]
        for (method, route, code), count in sorted(self._requests.items()):
            labels = f'method="{method}",route="{route}",code="{code}"'
            lines.append(f"probewire_http_requests_total{{{labels}}} {count}")
        lines += [
            "# HELP probewire_generated_tokens_total Tokens sampled.",
            "# TYPE probewire_generated_tokens_total counter",
            f'probewire_generated_tokens_total{{face="http"}} {self._tokens}',
            "# HELP probewire_captured_bytes_total Tensor bytes captured and sent, before their encoding.",
            "# TYPE probewire_captured_bytes_total counter",
            f'probewire_captured_bytes_total{{face="http"}} {self._bytes}',
        ]
        if models_ready is not None:
            lines += [
                "# HELP probewire_models_ready Models that answered a forward just now.",
                "# TYPE probewire_models_ready gauge",
                f"probewire_models_ready {models_ready}",
            ]
        return "\n".join(lines) + "\n"
