"""What machines ask: health that is answered whatever happens, and counters."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from fake_model import FakeOperations
from rest_caller import Caller, error_of

from probewire.protos.errors import Unavailable
from probewire.protos.loading import HealthReport
from probewire.server.api.http.app import create_app
from probewire.server.api.http.routes import health as module
from probewire.server.metrics import MEDIA_TYPE, Metrics


class Ill(FakeOperations):
    """Says of its health what it is told to."""

    def __init__(self, answer: HealthReport | Exception | None) -> None:
        super().__init__()
        self.answer = answer

    async def health(self) -> HealthReport:
        if self.answer is None:
            await asyncio.Event().wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        assert self.answer is not None
        return self.answer


def caller(answer: HealthReport | Exception | None, **options: Any) -> Caller:
    operations = Ill(answer)
    return Caller(create_app(operations, version="1.2.3", **options), operations)


@pytest.mark.parametrize(("ready", "status", "word"), [(True, 200, "healthy"), (False, 503, "unhealthy")])
def test_the_whole_report_is_told(ready: bool, status: int, word: str) -> None:
    response = caller(HealthReport(ready, "1 of 2", {"a": "ready", "b": "failed: no memory"})).get("/health")
    assert response.status_code == status
    assert response.json() == {
        "status": word,
        "service": "probewire",
        "version": "1.2.3",
        "ready": ready,
        "detail": "1 of 2",
        "models": {"a": "ready", "b": "failed: no memory"},
    }


def test_models_that_do_not_answer_are_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.01)
    response = caller(None).get("/health")
    assert (response.status_code, response.json()["detail"]) == (503, "the models have not answered within 0.01 s")


def test_an_error_of_ours_is_the_reason() -> None:
    response = caller(Unavailable("the server is shutting down")).get("/health")
    assert (response.status_code, response.json()["detail"]) == (503, "the server is shutting down")


def test_a_bug_is_no_500_and_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        response = caller(ZeroDivisionError("a secret")).get("/health")
    assert response.status_code == 503
    assert response.headers["x-request-id"] in response.json()["detail"]
    assert "secret" not in response.text
    assert "a secret" in caplog.text


@pytest.mark.parametrize("path", ["/health", "/metrics"])
def test_they_take_no_parameters(path: str) -> None:
    response = caller(HealthReport(True, "")).get(f"{path}?verbose=1")
    assert response.status_code == 422
    assert error_of(response)["message"] == "unknown query parameters ['verbose']; allowed: none"


def test_counters_are_those_of_the_app() -> None:
    metrics = Metrics()
    call = caller(HealthReport(True, ""), metrics=metrics)
    call.get("/health")
    response = call.get("/metrics")
    assert response.headers["content-type"] == MEDIA_TYPE
    assert 'route="/health"' in response.text
    assert response.content.decode() in (response.text, metrics.text().decode())


def test_counters_may_be_gathered_from_elsewhere_first() -> None:
    async def measure() -> bytes:
        return b"all_of_them 7\n"

    response = caller(HealthReport(True, ""), measure=measure).get("/metrics")
    assert (response.text, response.headers["content-type"]) == ("all_of_them 7\n", MEDIA_TYPE)
