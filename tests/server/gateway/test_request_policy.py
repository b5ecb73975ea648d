"""Roles, limits, metrics and the audit."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from probewire.protos import probewire_pb2 as pb
from probewire.protos.errors import PermissionDenied, ResourceExhausted, Unauthenticated
from probewire.protos.model import Finished, TensorFrame, Timings, Token, Usage
from probewire.protos.tensors import Tensor
from probewire.protos.wire.events import encode_events
from probewire.server.auth.access import Access
from probewire.server.auth.audit import Audit
from probewire.server.auth.callers import CALLER, Caller
from probewire.server.auth.users import Role, UserLimits, Users
from probewire.server.gateway import request_policy as policy_module
from probewire.server.gateway.request_policy import RequestPolicy
from probewire.server.metrics import Metrics
from probewire.server.state.database import State


@pytest.fixture
def users(tmp_path: Path) -> Iterator[Users]:
    state = State(tmp_path)
    yield Users(state)
    state.close()


@pytest.fixture
def policy(users: Users, tmp_path: Path) -> Iterator[RequestPolicy]:
    audit = Audit(tmp_path / "audit.jsonl")
    yield RequestPolicy(Access(users), Metrics(), audit)
    audit.close()


@pytest.fixture
def become(users: Users) -> Callable[..., None]:
    def become(name: str, role: Role = "researcher", **limits: int) -> None:
        if name not in [user.name for user in users.list()]:
            users.add(name, role, UserLimits(**limits))
        CALLER.set(Caller(users.get(name), f"req-{name}", "1.2.3.4"))

    return become


MESSAGE = b"".join(
    encode_events(
        [
            TensorFrame("input", 0, "h", ("resid_post.0",), (0,), 0, Tensor("float32", (1, 1, 250), bytes(1000))),
            Token("input", 0, 5, "secret answer"),
            Finished("input", "length", Usage(11, 1), Timings(queued_s=0.25)),
        ]
    )
)


@pytest.mark.parametrize(
    ("role", "allowed", "refused"),
    [
        ("viewer", ["Models.List", "Activity.Get"], ["Inference.Generate", "Models.Load", "Sessions.Create"]),
        ("researcher", ["Inference.Run", "Captures.Delete", "Sessions.Update"], ["Models.Load", "Models.Unload"]),
        ("admin", ["Models.Unload", "Inference.Generate"], []),
    ],
)
def test_a_role_says_what_one_may(
    policy: RequestPolicy, become: Callable[..., None], role: Role, allowed: list[str], refused: list[str]
) -> None:
    become("ada", role)
    for operation in allowed:
        with policy.record(operation):
            pass
    for operation in refused:
        with pytest.raises(PermissionDenied, match=f"{operation} needs the role .* ada is a {role}"):
            policy.check(operation)


def test_requests_at_once_are_limited_by_user(policy: RequestPolicy, become: Callable[..., None]) -> None:
    become("ada", requests=2)
    with policy.record("Inference.Generate"), policy.record("Inference.Run"):
        with pytest.raises(ResourceExhausted, match="2 requests under way") as caught, policy.record("Inference.Run"):
            pass
        assert caught.value.retry_after_s
        with policy.record("Captures.Get"):
            pass
        become("bob")
        with policy.record("Inference.Run"):
            assert [record.caller.user.name for record in policy.records] == ["ada", "ada", "bob"]
    become("ada")
    with policy.record("Inference.Run"):
        pass
    assert policy.records == []


def test_tokens_a_minute_are_paid_for_afterwards(policy: RequestPolicy, become: Callable[..., None]) -> None:
    become("ada", tokens_per_minute=12)
    with policy.record("Inference.Generate", "m") as record:
        policy.took(record, MESSAGE)  # 11 + 1 tokens
    with pytest.raises(ResourceExhausted, match="12 tokens a minute") as caught, policy.record("Inference.Generate"):
        pass
    assert 0 < (caught.value.retry_after_s or 0) <= 10
    become("bob")
    with policy.record("Inference.Generate"):
        pass


def test_a_revoked_key_ends_what_runs(
    policy: RequestPolicy, users: Users, become: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_module, "RECHECK_S", 0.0)
    become("ada")
    with policy.record("Inference.Generate", "m") as record:
        policy.took(record, MESSAGE)
        users.revoke("ada")
        with pytest.raises(Unauthenticated, match="revoked"):
            policy.took(record, MESSAGE)


def test_what_went_through_is_counted(policy: RequestPolicy, become: Callable[..., None]) -> None:
    become("ada")
    with policy.record("Inference.Generate", "m", sites=["resid_post.0"], session="ses-1") as record:
        policy.took(record, MESSAGE)
        policy.took(record, b"garbage\xff")
        shown = record.activity()
    assert (shown.user, shown.tokens, shown.state, shown.session) == ("ada", 1, "running", "yes")
    assert 1000 <= shown.captured_bytes <= 1100
    text = policy.metrics.text().decode()
    for line in (
        'probewire_generated_tokens_total{model="m",user="ada"} 1.0',
        'probewire_prompt_tokens_total{model="m",user="ada"} 11.0',
        'probewire_requests_total{code="OK",model="m",operation="Inference.Generate",user="ada"} 1.0',
        'probewire_queue_seconds_sum{model="m"} 0.25',
        'probewire_first_token_seconds_count{model="m"} 1.0',
        'probewire_requests_in_flight{user="ada"} 0.0',
    ):
        assert line in text


def test_the_audit_names_who_and_what_and_no_prompt(
    policy: RequestPolicy, become: Callable[..., None], tmp_path: Path
) -> None:
    become("ada")
    with policy.record("Inference.Generate", "m", sites=["resid_post.*"], prompts=["secret question"]) as record:
        policy.took(record, MESSAGE)
    with pytest.raises(ResourceExhausted), policy.record("Inference.Run", "m"):
        raise ResourceExhausted("full")
    first, second = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert first["user"] == "ada"
    assert (first["operation"], first["model"], first["sites"]) == ("Inference.Generate", "m", ["resid_post.*"])
    assert (first["code"], first["tokens"], first["prompt_tokens"]) == ("OK", 1, 11)
    assert first["request"] == "req-ada"
    assert abs(first["time"] - time.time()) < 60
    assert second["code"] == "RESOURCE_EXHAUSTED"
    assert "secret" not in (tmp_path / "audit.jsonl").read_text()


def test_the_audit_names_variants_with_version_and_hash(
    policy: RequestPolicy, become: Callable[..., None], tmp_path: Path
) -> None:
    become("ada")
    used = [pb.UsedVariant(name="formal", version=2, hash="ab" * 32, owner="ada", scale=scale) for scale in (1.0, 0.5)]
    begins = pb.Events(events=[pb.Event(started=pb.Started(variants=used))])
    with policy.record("Inference.Generate", "m") as record:
        policy.took(record, begins.SerializeToString())
        policy.took(record, MESSAGE)
    with policy.record("Inference.Run", "m") as record:
        policy.took(record, MESSAGE)
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [line.get("variants", []) for line in lines] == [["formal@2", "ab" * 32], []]


def test_prompts_are_audited_when_asked(users: Users, become: Callable[..., None], tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.jsonl", prompts=True)
    policy = RequestPolicy(Access(users), Metrics(), audit)
    become("ada")
    with policy.record("Inference.Generate", "m", prompts=["secret question"]):
        pass
    assert json.loads((tmp_path / "audit.jsonl").read_text())["prompts"] == ["secret question"]
    audit.close()


def test_the_audit_follows_logrotate(policy: RequestPolicy, become: Callable[..., None], tmp_path: Path) -> None:
    become("ada")
    file = tmp_path / "audit.jsonl"
    with policy.record("Inference.Run"):
        pass
    file.rename(tmp_path / "audit.jsonl.1")
    with policy.record("Inference.Run"):
        pass
    assert len(file.read_text().splitlines()) == 1


def test_an_audit_that_cannot_be_written_fails_no_request(
    policy: RequestPolicy, become: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    become("ada")
    with policy.record("Inference.Run"):
        pass
    file = tmp_path / "audit.jsonl"
    file.rename(tmp_path / "audit.jsonl.1")
    file.mkdir()  # where the new file should be
    for _ in range(2):
        with caplog.at_level(logging.ERROR), policy.record("Inference.Run"):
            pass
        assert "the audit cannot be written" in caplog.text
        caplog.clear()
    file.rmdir()
    with policy.record("Inference.Run"):
        pass
    assert len(file.read_text().splitlines()) == 1, "it goes on as soon as it can"


def test_the_audit_is_its_owners_alone_whatever_the_umask(
    policy: RequestPolicy, become: Callable[..., None], tmp_path: Path
) -> None:
    become("ada")
    file = tmp_path / "audit.jsonl"
    assert file.stat().st_mode & 0o777 == 0o600
    before = os.umask(0)
    try:
        file.rename(tmp_path / "audit.jsonl.1")
        with policy.record("Inference.Run"):
            pass
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o600
