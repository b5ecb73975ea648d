"""The standard gRPC health service, answered from `Operations.health`, which asks for a real forward.

The service name may be empty (the whole server), one of our services, or a model's id. The whole report travels as
JSON in the trailing metadata, for clients that want the reasons.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc
import grpc.aio
import orjson
from grpc_health.v1 import health_pb2

from ..protos.errors import NotFound
from ..protos.loading import HealthReport
from ..protos.wire.codec import from_json, to_json
from ..protos.wire.parsing import parse
from .grpc_answer import write
from .service import Answering

__all__ = ["REPORT_KEY", "HealthApi", "report_of"]

REPORT_KEY = "health-report-bin"

WATCH_INTERVAL_S = 2.0

_Context = grpc.aio.ServicerContext[bytes, bytes]
_Check = health_pb2.HealthCheckRequest
_Answer = health_pb2.HealthCheckResponse


class HealthApi:
    """Check and Watch. `services` are the names that stand for the whole server."""

    def __init__(self, operations: Answering, services: tuple[str, ...]) -> None:
        self._operations = operations
        self._services = ("", *services)
        self._closing = False

    def enter_shutdown(self) -> None:
        """From now on NOT_SERVING, so that balancers look elsewhere while requests in flight go on."""
        self._closing = True

    async def check(self, request: bytes, context: _Context) -> bytes:
        """One answer."""
        service: str = parse(_Check, request).service
        report = await self._operations.health()
        context.set_trailing_metadata(((REPORT_KEY, orjson.dumps(to_json(report))),))
        status = self._status(service, report)
        if status == _Answer.SERVICE_UNKNOWN:
            known = ", ".join(report.models) or "none loaded"
            raise NotFound(f"no service or model {service!r}; models: {known}")
        return _Answer(status=status).SerializeToString()

    async def watch(self, request: bytes, context: _Context) -> None:
        """An answer now and whenever it changes."""
        service: str = parse(_Check, request).service
        last: int | None = None
        while True:
            status = self._status(service, await self._operations.health())
            if status != last:
                await write(context, _Answer(status=status).SerializeToString())
                last = status
            await asyncio.sleep(WATCH_INTERVAL_S)

    def _status(self, service: str, report: HealthReport) -> _Answer.ServingStatus.ValueType:
        if service in self._services:
            ready = report.ready
        elif service in report.models:
            ready = report.models[service] == "ready" or report.models[service].startswith("asleep")
        else:
            return _Answer.SERVICE_UNKNOWN
        return _Answer.SERVING if ready and not self._closing else _Answer.NOT_SERVING


def report_of(answer: bytes, trailing: Callable[[str], bytes | None]) -> HealthReport:
    """The report behind an answer of `check`."""
    data = trailing(REPORT_KEY)
    if data is not None:
        return from_json(HealthReport, orjson.loads(data))
    ready = parse(_Answer, answer).status == _Answer.SERVING
    return HealthReport(ready, "ready" if ready else "not serving")
