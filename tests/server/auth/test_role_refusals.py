"""What a role forbids: refused, audited and counted once, as everything else that ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from serving import gateway

from probewire.protos import probewire_pb2 as pb
from probewire.protos.errors import PermissionDenied
from probewire.protos.gradients import GradientsRequest
from probewire.protos.loading import LoadRequest
from probewire.protos.metrics import Logit, Target
from probewire.protos.model import GenerateRequest, Input, RunRequest
from probewire.protos.operations import BY_CALL
from probewire.protos.saes import LoadSaeRequest, SaePart
from probewire.protos.sessions import CreateSessionRequest, UpdateSessionRequest
from probewire.protos.spec import Plan
from probewire.protos.sweeps import SweepRequest
from probewire.protos.variants.stored import LoadVariantRequest, VariantPartRequest
from probewire.server.auth.callers import CALLER, Caller
from probewire.server.gateway.gateway import Gateway
from probewire.server.gateway.request_policy import PERMITTED

Call = Callable[[Gateway], Awaitable[Any]]


async def all_of(stream: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in stream]


FORBIDDEN: dict[str, Call] = {
    "Inference.Generate": lambda it: all_of(it.generate(GenerateRequest((Input("x"),)))),
    "Inference.Run": lambda it: all_of(it.run(RunRequest((Input("x"),)))),
    "Inference.Gradients": lambda it: all_of(it.gradients(GradientsRequest((Input("x"),), (Target(Logit(1)),)))),
    "Inference.Sweep": lambda it: all_of(it.sweep(SweepRequest((Input("x"),), (Target(Logit(1)),), (Plan(),)))),
    "Models.Weights": lambda it: it.weight_names(""),
    "Models.Load": lambda it: all_of(it.load(LoadRequest("fake"))),
    "Models.Unload": lambda it: it.unload("fake"),
    "Captures.Get": lambda it: all_of(
        it.streams.stream(BY_CALL["capture"], pb.CaptureRequest(id="cap-1").SerializeToString())
    ),
    "Captures.Delete": lambda it: it.delete_capture("cap-1", ""),
    "Saes.Load": lambda it: it.load_sae(LoadSaeRequest(source="x")),
    "Saes.Send": lambda it: it.send_sae(SaePart("0" * 64, 1)),
    "Saes.Unload": lambda it: it.unload_sae("x", ""),
    "Variants.Load": lambda it: it.load_variant(LoadVariantRequest(source="x")),
    "Variants.Send": lambda it: it.send_variant(SaePart("0" * 64, 1)),
    "Variants.Read": lambda it: it.variant_part(VariantPartRequest("x", "variant.json")),
    "Variants.Unload": lambda it: it.unload_variant("x", ""),
    "Sessions.Create": lambda it: it.create_session(CreateSessionRequest()),
    "Sessions.Update": lambda it: it.update_session(UpdateSessionRequest("ses-1")),
    "Sessions.Delete": lambda it: it.delete_session("ses-1"),
}
"""What a viewer may not, of all that the audit names."""
ONLY_LOOKS = {"Captures.List", "Saes.List", "Variants.List", "Variants.Get", "Sessions.Get", "Sessions.List"}
"""Neither audited nor counted, allowed or not."""


def test_every_operation_is_asked_for() -> None:
    assert {*FORBIDDEN} == PERMITTED["admin"] - PERMITTED["viewer"] - ONLY_LOOKS


def test_each_is_audited_and_counted_once(tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"

    async def scenario() -> str:
        async with gateway(audit=str(audit)) as (it, _):
            it.users.add("vic", "viewer")
            CALLER.set(Caller(it.users.get("vic"), "req-vic", "1.2.3.4"))
            for operation, call in FORBIDDEN.items():
                with pytest.raises(PermissionDenied, match=f"{operation} needs the role"):
                    await call(it)
            assert it.workers == {}
            return it.metrics.text().decode()

    metrics = asyncio.run(scenario()).splitlines()
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [line["operation"] for line in lines] == list(FORBIDDEN)
    told = {(line["user"], line["request"], line["peer"], line["code"]) for line in lines}
    assert told == {("vic", "req-vic", "1.2.3.4", "PERMISSION_DENIED")}
    counted = [line for line in metrics if line.startswith("probewire_requests_total")]
    assert sorted(counted) == sorted(
        f'probewire_requests_total{{code="PERMISSION_DENIED",model="",operation="{operation}",user="vic"}} 1.0'
        for operation in FORBIDDEN
    )
    assert 'probewire_requests_in_flight{user="vic"} 0.0' in metrics
