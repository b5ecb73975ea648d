"""Values that overflow are an error in words that names where it began; they are never answered as text or as a metric."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.clients import Logit, LogProb, hook, steer
from probewire.protos.edits import Add, Scale
from probewire.protos.errors import InvalidArgument
from probewire.protos.spec import Condition
from tests.parity.opened import Opened, both

TOKENS = [7, 99, 12, 200, 31, 64, 5]
FAR = np.full(64, 60000.0, dtype=np.float32)
"""Within float16; twice of it is not."""


@both
def test_a_generation_says_where_it_began(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float16")
    hooks = [steer("resid_post.0", FAR, alpha=1.0), steer("resid_post.1", FAR, alpha=1.0)]
    with pytest.raises(InvalidArgument) as caught:
        client.generate(TOKENS, hooks=hooks, max_new_tokens=4)
    message = caught.value.message
    assert "no numbers" in message
    assert "resid_post.1 at position 0" in message or "resid_mid.1 at position 0" in message
    assert "make the edits weaker (resid_post.0, resid_post.1)" in message
    assert "float16" in message


@both
def test_neighbours_do_not_notice(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float16")
    alone = client.generate(TOKENS, max_new_tokens=6, ignore_eos=True)
    with client.stream(TOKENS, max_new_tokens=6, ignore_eos=True) as stream:
        with pytest.raises(InvalidArgument, match="no numbers"):
            client.generate(TOKENS[:3], hooks=[steer("resid_post.1", 3 * FAR)], max_new_tokens=4)
        assert [step.token.id for step in stream if step.token] == list(alone.token_ids[len(TOKENS) :])


@both
def test_it_may_begin_with_a_generated_token(opened: Opened, backend: str) -> None:
    """Only there the edit applies: the first tokens come, then the error with its position."""
    client = opened("llama", backend, "float16")
    late = hook("resid_post.1", Add(FAR, alpha=3.0), phase="generated")
    with pytest.raises(InvalidArgument, match=rf"resid_post\.1 at position {len(TOKENS)}"):
        client.generate(TOKENS, hooks=[late], max_new_tokens=4, ignore_eos=True)


@both
def test_conditions_are_decided_anew(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float16")
    latched = Condition(-1e9, unit=0, latch="mean")
    late = hook("resid_post.1", Add(FAR, alpha=3.0), phase="generated", when=latched)
    with pytest.raises(InvalidArgument, match=rf"resid_post\.1 at position {len(TOKENS)}"):
        client.generate(TOKENS, hooks=[late], max_new_tokens=4, ignore_eos=True)


@both
def test_gradients_and_sweeps_say_so_too(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float16")
    with pytest.raises(InvalidArgument, match=r"overflowed.*first tensor that is not finite is resid_post\.1"):
        client.gradients(TOKENS, LogProb(5), at="embed", hooks=[steer("resid_post.1", 3 * FAR)])
    plans = [[hook("mlp_out.1", Scale(0.5))], [steer("resid_post.1", 3 * FAR)]]
    with pytest.raises(InvalidArgument, match=r"plan 1: .*overflowed"):
        client.sweep(TOKENS, Logit(5), plans, progress=False)
    fine = client.sweep(TOKENS, Logit(5), plans[:1], progress=False)
    assert np.isfinite(fine.array()).all()


@both
def test_float32_is_not_blamed(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float32")
    with pytest.raises(InvalidArgument) as caught:
        client.generate(
            TOKENS, hooks=[hook("resid_post.1", Scale(1e38)), hook("resid_post.1", Scale(1e38))], max_new_tokens=2
        )
    assert "dtype" not in caught.value.message
