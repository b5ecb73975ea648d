"""Raw module sites: read where rows can be matched to tokens, refused where they cannot."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.backends.hooks.base import Backend
from probewire.backends.hooks.points import PROBE_LENGTHS, Seen
from probewire.protos.edits import Scale
from probewire.protos.errors import InvalidArgument
from probewire.protos.spec import Capture, Hook, Plan
from tests.parity.harness import generate, load, run, sequence
from tests.tiny_models import tiny_checkpoint

PROMPT = [7, 99, 12, 200, 31, 64, 5, 18, 77, 140]


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Backend:
    return load("torch", tiny_checkpoint("llama", tmp_path_factory.mktemp("tiny")))


def _capture(site: str) -> Plan:
    return Plan((Hook(site, capture=Capture()),))


def test_a_raw_site_equals_the_named_one(backend: Backend) -> None:
    raw = "module:model.layers.1.mlp.down_proj:input"
    found = run(backend, PROMPT, _capture(raw))[0, raw, ""]
    named = run(backend, PROMPT, _capture("mlp_act.1"))[0, "mlp_act.1", ""]
    assert np.array_equal(found.values, named.values)
    [made] = generate(backend, [sequence(backend, PROMPT, _capture(raw), mode="generate", max_new=4)])
    assert made.captured[0, raw, ""].positions == tuple(range(len(PROMPT) + 3))


def test_a_raw_site_can_be_edited(backend: Backend) -> None:
    edits = (Hook("module:model.layers.1.mlp.up_proj:output", edit=Scale(0.0)), Hook("mlp_out.1", capture=Capture()))
    assert not run(backend, PROMPT, Plan(edits))[1, "mlp_out.1", ""].values.any()


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("module:lm_head:output", "0 times"),  # logits are made after the forward, of the rows that are asked for
        ("module:model:input", "no rows"),
        ("module:model.layers.1.nowhere:output", "no module"),
    ],
)
def test_what_cannot_be_matched_is_refused(backend: Backend, site: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        run(backend, PROMPT, _capture(site))


def test_a_raw_site_that_turns_out_unreadable_leaves_its_neighbour_alone(backend: Backend) -> None:
    """In the engine the body is called with keywords alone: were that not seen at load, the request fails, the batch goes on."""
    engine = backend.engine
    assert engine is not None
    seen = backend.points.seen
    assert isinstance(seen, dict)
    true = seen["model", "input"]
    seen["model", "input"] = Seen([1, 1], [(2, n, 64) for n in PROBE_LENGTHS])
    try:
        bad = sequence(backend, PROMPT, _capture("module:model:input"), mode="generate", name="bad")
    finally:
        seen["model", "input"] = true
    good = sequence(backend, PROMPT, Plan(), mode="generate", max_new=3, name="good")
    assert engine.admit(bad)
    assert engine.admit(good)
    errors = [r.error for r in engine.step() if r.error is not None]
    assert len(errors) == 1
    while good.n_generated < 3:
        engine.step()
    engine.remove(good)
    assert not engine.active
