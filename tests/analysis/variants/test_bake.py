"""Hooks baked into weights: the same logits as the hooks, and what stays stays in its order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.variants import bake
from probewire.clients import Client, Hook, Plan, Variant, hook
from probewire.protos.conditions import AnyOf
from probewire.protos.edits import Add, Affine, Clamp, Constant, LowRank, ProjectOut, Replace, Scale, Zeros
from probewire.protos.hooks import Condition, Where
from probewire.server.worker.inprocess import InProcessService
from tests.tiny_models import tiny_checkpoint

RNG = np.random.default_rng(4)
PROMPT = "When Mary and John"


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma2"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder: Path = tiny_checkpoint(request.param, tmp_path_factory.mktemp(request.param))
    with Client.inprocess(InProcessService.create(str(folder), dtype="float32", device="cpu")) as made:
        yield made


def vector(width: int) -> Any:
    return RNG.normal(size=width).astype(np.float32)


def hooks_of(width: int, d_mlp: int) -> dict[str, Hook]:
    directions = RNG.normal(size=(2, width)).astype(np.float32)
    return {
        "add": Hook("mlp_out.1", Add(vector(width), alpha=1.5)),
        "add to units": Hook("attn_out.1", Add(vector(2), units=(3, 7))),
        "scale neurons": Hook("mlp_act.1", Scale(0.25, units=(1, 5, 9))),
        "scale all": Hook("mlp_act.*", Scale(0.5)),
        "zero neurons": Hook("mlp_act.0", Replace(Zeros(), units=(0, 2))),
        "zero by a constant": Hook("mlp_act.0", Replace(Constant(0.0), units=(0, 2))),
        "zero heads": Hook("z.1", Replace(Zeros(), heads=(1, 3))),
        "scale a unit of heads": Hook("z.0", Scale(3.0, heads=(0, 2), units=(4,))),
        "project out": Hook("attn_out.1", ProjectOut(directions)),
        "project out of units": Hook("mlp_out.0", ProjectOut(directions[:1, :5], units=(1, 2, 3, 8, 9))),
        "affine": Hook("mlp_out.1", Affine(0.1 * directions.T, directions, np.float32([0.3, -0.2]), alpha=0.7)),
        "low rank": Hook("mlp_out.1", LowRank(0.1 * RNG.normal(size=(d_mlp, 2)), RNG.normal(size=(2, width)))),
    }


def served(client: Client, variant: Variant) -> Any:
    """Logits under the variant."""
    client.load_variant(variant, name="baked")
    try:
        return client.run(PROMPT, capture="logits", variant="baked").captures["logits"]
    finally:
        client.unload_variant("baked")


def hooked(client: Client, plan: Plan) -> Any:
    return client.run(PROMPT, hooks=plan.hooks, capture="logits").captures["logits"]


@pytest.mark.parametrize("kind", hooks_of(4, 4))
def test_each_row_of_the_table(client: Client, kind: str) -> None:
    info = client.describe()
    one = hooks_of(info.d_model, info.d_mlp)[kind]
    baked = bake(client, Variant(plan=Plan((one,))))
    after_a_norm = info.architecture == "gemma2" and one.site.startswith(("mlp_out", "attn_out"))
    if after_a_norm:
        assert [why for _, why in baked.left] == [
            f"in this model a norm lies between {'w_down' if 'mlp' in one.site else 'w_o'} and {one.site[:-2]}"
        ]
        return
    assert not baked.left
    assert not baked.variant.plan.hooks
    expected = hooked(client, Plan((one,)))
    if (info.architecture, kind) != ("gemma2", "scale all"):  # the norm behind it takes a common factor out again
        assert np.abs(expected - hooked(client, Plan())).max() > 1e-4
    np.testing.assert_allclose(served(client, baked.variant), expected, atol=1e-5 * np.abs(expected).max())


def test_several_at_one_weight_in_their_order(client: Client) -> None:
    info = client.describe()
    if info.architecture == "gemma2":
        pytest.skip("a norm lies behind its weights")
    kinds = hooks_of(info.d_model, info.d_mlp)
    order = (
        "low rank",
        "add",
        "scale neurons",
        "affine",
        "project out of units",
        "zero neurons",
        "add to units",
        "project out",
    )
    plan = Plan(tuple(kinds[kind] for kind in order))
    baked = bake(client, Variant(plan=plan))
    assert not baked.left
    expected = hooked(client, plan)
    np.testing.assert_allclose(served(client, baked.variant), expected, atol=1e-5 * np.abs(expected).max())


def test_what_stays_keeps_its_place(client: Client) -> None:
    info = client.describe()
    if info.architecture == "gemma2":
        pytest.skip("a norm lies behind its weights")
    kinds = hooks_of(info.d_model, info.d_mlp)
    plan = Plan((
        Hook("mlp_act.1", Scale(0.5, units=(1,))),  # before a clamp that stays: would act behind it
        Hook("mlp_act.1", Clamp(max=0.1)),
        Hook("mlp_act.1", Scale(2.0, units=(3,))),  # behind it: may
        Hook("mlp_out.1", Clamp(min=-0.5)),
        kinds["add"],  # behind a clamp that stays: would act before it
        Hook("resid_post.1", Add(vector(info.d_model))),
        Hook("z.0", Scale(0.5, heads=(1,))),
    ))  # fmt: skip
    baked = bake(client, Variant(plan=plan))
    assert [one.site for one, _ in baked.left] == ["mlp_act.1", "mlp_act.1", "mlp_out.1", "mlp_out.1", "resid_post.1"]
    assert next(why for _, why in baked.left) == "another hook at mlp_act.1 stays a hook, and their order matters"
    assert set(baked.variant.deltas) == {"w_down.1", "w_o.0"}
    expected = hooked(client, plan)
    np.testing.assert_allclose(served(client, baked.variant), expected, atol=1e-5 * np.abs(expected).max())


def test_what_is_no_change_of_weights(client: Client) -> None:
    info = client.describe()
    width = info.d_model
    reads = Condition(0.1, site="mlp_act.1", unit=2)
    hooks = (
        hook("mlp_out.1", Add(vector(width)), phase="generated"),
        Hook("mlp_out.1", Add(vector(width)), where=Where(when=Condition(0.0, unit=1))),
        Hook("resid_post.0", Scale(2.0)),
        Hook("mlp_act.0", Replace(Constant(1.0), units=(1,))),
        Hook("mlp_act.1", Scale(0.5, units=(1,))),
        Hook("resid_post.1", Scale(0.9), where=Where(when=AnyOf((reads,)))),
    )
    baked = bake(client, Variant(plan=Plan(hooks)))
    assert len(baked.left) == len(hooks)
    assert {one.site: why for one, why in baked.left}["mlp_act.1"] == "a condition reads mlp_act.1"
