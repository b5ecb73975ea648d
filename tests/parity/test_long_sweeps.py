"""Sweeps that are left, that fail, and that take long: nothing is kept, and others go on."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from probewire.clients import Client, ablate, hook, patch, steer
from probewire.protos.edits import Scale
from probewire.protos.errors import InvalidArgument
from probewire.protos.metrics import Logit, LogProb, Measured, Target
from probewire.protos.model import Finished, Input, Started
from probewire.protos.spec import Plan
from probewire.protos.sweeps import SweepRequest
from tests.parity.opened import TOKENS, Opened, both

WIDE = np.random.default_rng(4).normal(size=64).astype(np.float32)
N = len(TOKENS)


def _scheduler(client: Client) -> Any:
    transport: Any = client._transport
    return transport._service._model.scheduler


def _left(client: Client) -> tuple[int, int]:
    """Requests that have not ended and inputs whose forward is kept, seen by the model's own thread."""
    scheduler = _scheduler(client)
    return scheduler.call(lambda: (len(scheduler.jobs), len(scheduler._forwards._prefixes)))


def _long(share: bool = True) -> SweepRequest:
    plans = tuple(
        Plan((hook(f"resid_post.{layer}", Scale(factor / 1000), positions=[p]),))
        for factor in range(390)
        for layer in range(3)
        for p in range(N)
    )
    return SweepRequest((Input(token_ids=tuple(TOKENS)),), (Target(LogProb(3)),), plans, share=share)


@both
@pytest.mark.parametrize("share", [True, False])
def test_a_sweep_that_is_left_leaves_nothing(opened: Opened, backend: str, share: bool) -> None:
    client = opened("llama", backend, "float32")
    before = client.run(TOKENS, capture="logits")["logits"]
    events = client._transport.listen("sweep", _long(share))
    assert isinstance(next(events), Started)
    first = next(events)
    assert isinstance(first, Measured)
    assert 0 < len(first.plans) < len(_long().plans)
    assert _left(client) == (1, int(share))
    events.close()
    assert _left(client) == (0, 0)
    assert np.array_equal(client.run(TOKENS, capture="logits")["logits"], before)


@both
def test_a_plan_that_fails_ends_the_sweep_and_nothing_else(opened: Opened, backend: str, faulty: Scale) -> None:
    client = opened("llama", backend, "float32")
    plans = [[hook("attn_out.1", Scale(0.5))], [hook("attn_out.1", faulty)]]
    for share in (True, False):
        with pytest.raises(InvalidArgument, match=r"attn_out\.1"):
            client.sweep(TOKENS, Logit(5), plans, share=share, progress=False)
        assert _left(client) == (0, 0)
    assert client.sweep(TOKENS, Logit(5), plans[:1], progress=False).array().shape == (1,)


@both
def test_others_go_on_while_a_long_sweep_is_under_way(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float32")
    alone = client.run(TOKENS, capture="logits")["logits"]
    text = client.generate(TOKENS, max_new_tokens=5).token_ids
    finished: list[str] = []
    begun, over = threading.Event(), threading.Event()

    def sweep() -> None:
        for event in client._transport.listen("sweep", _long()):
            begun.set()
            if isinstance(event, Finished):
                finished.append("sweep")
            if over.is_set():
                return

    def run() -> None:
        assert np.array_equal(client.run(TOKENS, capture="logits")["logits"], alone)
        finished.append("run")

    def generate() -> None:
        assert client.generate(TOKENS, max_new_tokens=5).token_ids == text
        finished.append("generation")

    def gradients() -> None:
        client.gradients(TOKENS, Logit(5), at="embed")
        finished.append("gradients")

    sweeping = threading.Thread(target=sweep)
    sweeping.start()
    assert begun.wait(60)
    others = [threading.Thread(target=work) for work in (run, generate, gradients)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join(120)
    over.set()
    assert sorted(finished) == ["generation", "gradients", "run"], "the sweep is still under way"
    sweeping.join(120)


# ---- what is refused -------------------------------------------------------------------------------------------------


@both
def test_a_bad_plan_is_named_before_anything_runs(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float32")
    good = [ablate("mlp_out.1", positions=2)]
    for bad, why in (
        ([hook("resid_post.9", Scale(0.0))], "plan 1.*layers 0:3"),
        ([steer("resid_post.1", WIDE[:5])], r"plan 1.*\[5\].*\[64\]"),
        ([patch("resid_post.1", from_input="nobody")], "plan 1.*no input 'nobody'"),
        ([hook("resid_post.1", Scale(0.0), positions=[N])], "plan 1.*position 14"),
    ):
        with pytest.raises(InvalidArgument, match=why):
            client.sweep(TOKENS, Logit(5), [good, bad], progress=False)
    with pytest.raises(InvalidArgument, match=r"base.*layers 0:3"):
        client.sweep(TOKENS, Logit(5), [good], hooks=[hook("resid_post.9", Scale(0.0))], progress=False)
    assert _left(client) == (0, 0)
