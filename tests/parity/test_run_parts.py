"""A run that is made in parts comes to what it comes to in one forward: rows, reductions, conditions, attention, logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from probewire.backends.hooks.base import Backend
from probewire.backends.hooks.run_parts import RunParts
from probewire.backends.hooks.sequence import StepResult
from probewire.clients import capture, patch
from probewire.protos.spec import Capture, Hook, Mean, NextLogprob, Plan
from tests.parity.beside import MOST, Beside
from tests.parity.harness import TOLERANCE, assert_same, collect, every_site, load, sequence
from tests.parity.opened import Opened, both
from tests.tiny_models import FAMILIES, tiny_checkpoint

TOKENS = [7, 99, 12, 200, 31, 64, 5, 18, 77, 140, 3, 250, 88, 41, 9, 163, 52, 20, 111, 6, 7, 8, 9]


@pytest.fixture(scope="module", params=["torch", "mlx"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Beside]:
    folder = tmp_path_factory.mktemp("tiny")
    return {family: Beside(load(request.param, tiny_checkpoint(family, folder))) for family in FAMILIES}


@pytest.fixture(scope="module", params=["torch", "mlx"])
def precise(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Beside]:
    """In float64: parts are other matrix products, and some plans (a clamp before a norm) make much of their rounding."""
    folder = tmp_path_factory.mktemp("tiny")
    return {
        family: Beside(load(request.param, tiny_checkpoint(family, folder), dtype="float64")) for family in FAMILIES
    }


def _in_parts(backend: Backend, plan: Plan, stops: list[int]) -> StepResult:
    made, parts = sequence(backend, TOKENS, plan), RunParts()
    result = None
    for stop in stops:
        assert result is None or not result.rows, "rows come with the last part"
        result = backend.run_part(made, parts, stop)
    assert result is not None
    return result


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_site(models: dict[str, Beside], family: str) -> None:
    backend = models[family].backend
    assert backend.cuts_runs
    more = (Hook("logits", capture=Capture(reduce=NextLogprob())), Hook("z.1", capture=Capture(reduce=Mean())))
    plan = Plan((*every_site(backend).hooks, *more))
    [whole] = backend.run([sequence(backend, TOKENS, plan)])
    cut = _in_parts(backend, plan, [4, 5, 14, len(TOKENS)])
    assert cut.error is whole.error is None
    assert_same(collect(cut.rows), collect(whole.rows), TOLERANCE["float32"])
    assert len(cut.rows) == len(whole.rows), "they are stacked alike"


@both
@pytest.mark.parametrize("site", ["attn_probs.1", "attn_scores.1"])
def test_attention_has_every_key_however_the_run_was_cut(
    opened: Opened, backend: str, site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that ran in an early part, captured and given to another input."""
    client = opened("llama", backend, "float32")
    asked: dict[str, Any] = {
        "capture": [capture(site, positions=3)],
        "hooks": [patch(site, from_input="b", inputs="a", positions=[9, 3], source_positions=[3, 2])],
    }
    inputs = {"a": TOKENS, "b": TOKENS[:12]}
    whole = client.run(inputs, **asked)
    transport: Any = client._transport
    monkeypatch.setattr(transport._service._model.scheduler._forwards.pace, "rows", lambda *_: 5)
    cut = client.run(inputs, **asked)
    assert whole.inputs["a"][site].shape[-1] == len(TOKENS)
    for name in inputs:
        ours, theirs = cut.inputs[name][site], whole.inputs[name][site]
        np.testing.assert_array_equal(np.isneginf(ours), np.isneginf(theirs))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    family=st.sampled_from(list(FAMILIES)),
    seed=st.integers(0, 2**32),
    cuts=st.sets(st.integers(1, len(TOKENS) - 1), max_size=4),
)
def test_any_plan(precise: dict[str, Beside], family: str, seed: int, cuts: set[int]) -> None:
    beside = precise[family]
    plan = beside.plans.plan(np.random.default_rng(seed), TOKENS, "run", len(TOKENS))
    worst, what = beside.in_parts(TOKENS, plan, [*sorted(cuts), len(TOKENS)])
    assert worst <= MOST, what
