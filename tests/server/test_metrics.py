"""What Prometheus reads: counters that only grow, one truth about sleeping models, and names that the documents have."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import Served, broken, drained, eventually, gateway, loaded, served

from probewire.server.api.grpc.service import admit_at_the_door
from probewire.server.api.http.app import create_app
from probewire.server.gateway.gateway import Gateway
from probewire.server.metrics import Metrics

DOCS = Path(__file__).parents[2] / "docs"


def over_gateway(scenario: Callable[[Gateway, Served], Awaitable[None]], *models: str) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), gateway(*models) as (it, server):
            await scenario(it, server)

    asyncio.run(run())


async def measured(it: Gateway, name: str, **labels: str) -> float | None:
    """One sample of what the server shows now; None where there is none."""
    text = (await it.measure()).decode()
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples if s.name == name]
    return next((s.value for s in samples if labels.items() <= s.labels.items()), None)


def offered() -> set[str]:
    """Every name that a query may use."""
    found: set[str] = set()
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", Metrics().text().decode(), re.MULTILINE):
        found |= {f"{name}{end}" for end in ("_bucket", "_sum", "_count")} if kind == "histogram" else {name}
    return found


def test_restarts_are_a_counter_that_goes_on_when_the_model_is_loaded_anew() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        name = "probewire_worker_restarts_total"
        assert await measured(it, name, model="fake") == 0, "so that the first one is an increase"
        for count in (1, 2):
            pid = it.workers["fake"].pid or 0
            os.kill(pid, signal.SIGKILL)

            async def back(pid: int = pid) -> bool:
                return it.workers["fake"].status == "ready" and it.workers["fake"].pid != pid

            await eventually(back, "it is back")
            assert await measured(it, name, model="fake") == count
            await it.unload("fake")
            assert await measured(it, name, model="fake") == count
            await loaded(it, "fake")
            assert await measured(it, name, model="fake") == count

    over_gateway(scenario, "fake")


def test_refused_keys_are_counted_on_both_apis() -> None:
    async def scenario(it: Gateway, _: Served) -> None:
        it.users.add("ada", "viewer")
        app = create_app(it, version="test", access=it.policy.access)
        transport = httpx.ASGITransport(app, client=("1.2.3.4", 5))
        async with (
            httpx.AsyncClient(transport=transport, base_url="http://test") as http,
            served(it, streams=it.streams, admit=admit_at_the_door(it.policy.access)) as door,
        ):
            for key in ("", "Bearer wrong", *(["Bearer bad"] * 20)):
                headers = {"authorization": key} if key else {}
                assert (await http.get("/v1/models", headers=headers)).status_code in (401, 429)
                for method in ("Inference/Generate", "Models/Weights"):
                    call = door.channel.unary_stream(f"/probewire.v1.{method}")
                    error = await broken(call(b"", metadata=tuple(headers.items())))
                    assert error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.RESOURCE_EXHAUSTED)
        counts = {
            (api, key): await measured(it, "probewire_refused_keys_total", face=api, key=key)
            for api in ("http", "grpc")
            for key in ("none", "wrong", "slowed")
        }
        assert counts == {
            ("http", "none"): 1, ("http", "wrong"): 20, ("http", "slowed"): 1,
            ("grpc", "none"): 2, ("grpc", "wrong"): 20, ("grpc", "slowed"): 22,
        }  # fmt: skip

    over_gateway(scenario)


def test_a_sleeping_model_is_up_wherever_one_looks() -> None:
    async def scenario(it: Gateway, server: Served) -> None:
        for _ in range(2):
            report = await it.health()
            assert (report.ready, report.detail) == (True, "1 of 1 models ready")
            assert await measured(it, "probewire_model_up", model="fake") == 1
            assert await measured(it, "probewire_models_ready") == 1
            assert [info.id for info in await it.models()] == ["fake"]
            it.workers["fake"].sleep()
        it.workers["fake"].wake()
        assert [info.id for info in await it.models()] == ["fake"], "nor is it gone while it wakes"
        assert len(await drained(server.generate())) == 5

    over_gateway(scenario, "fake")


def test_the_table_of_metrics_names_all_that_there_are_and_no_other() -> None:
    text = (DOCS / "operating.md").read_text()
    table = text[text.index("| metric | labels | meaning |") :].split("\n\n")[0]
    named = {name for row in table.splitlines() for name in re.findall(r"`(probewire_\w+)`", row.split("|")[1])}
    families = {re.sub("_(bucket|sum|count)$", "", name) for name in offered() if not name.endswith("_created")}
    assert named == families


def test_alerts_ask_for_metrics_that_there_are() -> None:
    text = (DOCS / "alerts.yml").read_text()
    rules = "\n".join(line for line in text.splitlines() if line.strip().startswith("expr:"))
    named = set(re.findall(r"\bprobewire_\w+", rules))
    assert len(named) >= 8
    assert named <= offered()


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_pages_name_metrics_that_there_are(page: Path) -> None:
    families = {re.sub("_(bucket|sum|count|total)$", "", name) for name in offered()}
    named = {re.sub("_total$", "", name) for name in re.findall(r"`(probewire_[a-z_]+)", page.read_text())}
    assert named <= families
