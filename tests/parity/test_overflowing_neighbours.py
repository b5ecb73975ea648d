"""One user's edit may make infinities; whoever generates beside them must not see any of it."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.backends.hooks.base import Backend
from probewire.protos.edits import Scale
from probewire.protos.spec import Capture, Hook, Plan, Where
from tests.parity.harness import TOLERANCE, assert_same, generate, load, sequence, stack_caches
from tests.tiny_models import tiny_checkpoint

PROMPT = [7, 99, 12, 200, 31, 64, 5, 18, 77, 140, 3, 250, 88, 41, 9, 163, 52, 20, 111]

FAMILIES = ["llama", "gemma3_text", "gpt_oss", "mistral"]
"""Plain attention, windows beside it, sinks, windows throughout."""


def _overflow(where: Where) -> Plan:
    return Plan((Hook("v.*", edit=Scale(1e38), where=where), Hook("resid_post.*", edit=Scale(1e38), where=where)))


@pytest.fixture(
    scope="module", params=[(b, f) for f in FAMILIES for b in ("torch", "torch stacked", "mlx")], ids="-".join
)
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    name, family = request.param
    name, _, stacked = name.partition(" ")
    made = load(name, tiny_checkpoint(family, tmp_path_factory.mktemp("tiny")))
    if stacked:
        stack_caches(made)
    assert made.engine is not None, made.info.generate_note
    return made


@pytest.mark.parametrize("probabilities", [False, True], ids=["stock attention", "probabilities read"])
@pytest.mark.parametrize("where", [Where(), Where(phase="generated")], ids=["prompt", "generated"])
def test_a_neighbour_whose_numbers_overflow_changes_nothing(
    backend: Backend, where: Where, probabilities: bool
) -> None:
    offered = any(site.name == "attn_probs" and site.generate for site in backend.info.sites)
    sites = ["resid_post.*", *(["attn_probs.*"] if probabilities and offered else ["z.*"])]
    plan = Plan(tuple(Hook(site, capture=Capture()) for site in sites))
    [alone] = generate(backend, [sequence(backend, PROMPT, plan, mode="generate", max_new=6)])
    others = [
        sequence(backend, PROMPT[i : i + 5], _overflow(where), mode="generate", max_new=6, name=f"n{i}") for i in (1, 2)
    ]
    mine = sequence(backend, PROMPT, plan, mode="generate", max_new=6, name="mine")
    made = generate(backend, [others[0], mine, others[1]], failing=["n1", "n2"])[1]
    assert all(np.isfinite(found.values).all() for found in made.captured.values())
    assert made.tokens == alone.tokens
    assert_same(made.captured, alone.captured, TOLERANCE["float32"])
