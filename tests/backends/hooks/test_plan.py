"""What is refused before a forward, because the plan could not be honoured exactly."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.backends.hooks.base import Backend
from probewire.protos.edits import Inline, LowRank, Replace, Scale, Stored
from probewire.protos.errors import InvalidArgument
from probewire.protos.spec import Condition, Hook, Plan, Where
from probewire.protos.tensors import Tensor
from tests.parity.harness import load, sequence
from tests.tiny_models import tiny_checkpoint

TOKENS = [7, 99, 12, 200, 31]


@pytest.fixture(scope="module", params=["torch", "mlx"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backend:
    return load(request.param, tiny_checkpoint("phi3", tmp_path_factory.mktemp("tiny")))


def _rows(n: int, width: int = 64) -> Tensor:
    return Tensor.of(np.ones((n, width), np.float32))


@pytest.mark.parametrize("site", ["attn_out.1", "mlp_out.1"])
def test_low_rank_must_read_what_the_module_reads(backend: Backend, site: str) -> None:
    width = {"attn_out.1": 64, "mlp_out.1": 96}[site]
    good, bad = (Hook(site, edit=LowRank(_rows(n, 2), _rows(2, 64), 0.1)) for n in (width, width + 1))
    sequence(backend, TOKENS, Plan((good,)))
    with pytest.raises(
        InvalidArgument, match=rf"takes rows {width + 1} wide, but the module of {site} reads rows {width}"
    ):
        sequence(backend, TOKENS, Plan((bad,)))


def test_rows_that_pair_with_generated_tokens_by_their_ids(backend: Backend) -> None:
    """Which of them the ids choose is not known when the rows are paired."""
    one = Replace(Inline(_rows(1)))
    everywhere = Hook("resid_post.1", edit=one, where=Where(token_ids=(99,)))
    with pytest.raises(InvalidArgument, match=r"not known before they are sampled.*where\.phase to 'prompt'"):
        sequence(backend, TOKENS, Plan((everywhere,)), mode="generate")
    sequence(backend, TOKENS, Plan((everywhere,)))
    for where in (Where(token_ids=(99,), phase="prompt"), Where(token_ids=(99,), positions=(0, 1))):
        sequence(backend, TOKENS, Plan((Hook("resid_post.1", edit=one, where=where),)), mode="generate")
    sequence(
        backend, TOKENS, Plan((Hook("resid_post.1", edit=Scale(2.0), where=Where(token_ids=(99,))),)), mode="generate"
    )


def test_positions_that_mean_one_token_cannot_pair_with_rows(backend: Backend) -> None:
    twice = Where(positions=(-1, 4))
    with pytest.raises(InvalidArgument, match="name a token twice"):
        sequence(backend, TOKENS, Plan((Hook("resid_post.1", edit=Replace(Inline(_rows(2))), where=twice),)))
    sequence(backend, TOKENS, Plan((Hook("resid_post.1", edit=Scale(2.0), where=twice),)))


def test_stored_rows_of_another_width(backend: Backend) -> None:
    plan = Plan((Hook("resid_post.1", edit=Replace(Stored("c"))),))
    sequence(backend, TOKENS, plan, stored={"c": np.ones((5, 64), np.float32)})
    for shape in ((5, 32), (5, 4, 16)):
        with pytest.raises(InvalidArgument, match="use a capture of the same site"):
            sequence(backend, TOKENS, plan, stored={"c": np.ones(shape, np.float32)})


def test_a_condition_at_one_tensor_sees_what_comes_before_it(backend: Backend) -> None:
    """phi3 computes gate and up as one tensor; named, they are two sites, gate first, whatever the order of the hooks."""
    gated = Hook("mlp_up.1", edit=Scale(0.0), where=Where(when=Condition(0.0, site="mlp_gate.1", unit=3)))
    gate = Hook("mlp_gate.1", edit=Scale(2.0))
    raw = Hook("module:model.layers.1.mlp.gate_up_proj:output", edit=Scale(2.0))
    for plan in (Plan((gated, gate)), Plan((gate, gated)), Plan((raw, gated))):
        sequence(backend, TOKENS, plan)
    with pytest.raises(InvalidArgument, match="put that hook first"):
        sequence(backend, TOKENS, Plan((gated, raw)))
