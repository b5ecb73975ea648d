"""Edge attribution: exact in a linear model, a derivative in any other, and heads that sum to their layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from probewire.analysis.attribution.edges import edge_attribution, edge_mask
from probewire.analysis.attribution.path_patching import path_patching
from probewire.clients import Client, InvalidArgument, Logit, Unsupported, steer as steer_hook
from probewire.server.worker.inprocess import InProcessService
from tests.analysis.attribution.linear_toy import LinearToy
from tests.tiny_models import tiny_checkpoint

CLEAN, CORRUPT = "abcdefgh", "abxdefyh"


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("steps", [0, 3])
def test_a_linear_model_is_path_patched_exactly(toy: LinearToy, direction: str, steps: int) -> None:
    prompts = ([[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 5, 3, 6], [2, 6, 9, 8]])
    found = edge_attribution(toy, *prompts, Logit(7), steps=steps, direction=direction)
    senders, receivers = found.effect.axes["sender"], found.effect.axes["receiver"]
    exact = path_patching(toy, *prompts, senders, receivers, Logit(7), direction=direction)
    assert found.effect.axes == exact.effect.axes
    assert np.abs(found.effect.values - exact.effect.values).max() <= 1e-10
    assert np.abs(exact.effect.values).max() > 0.1
    assert (found.effect.values[~found.exists.values.astype(bool)] == 0).all()
    sign = -1 if direction == "noise" else 1
    assert np.array_equal(found.importance.values, sign * found.effect.values)


def test_an_edge_is_the_derivative_along_its_path(tiny: Client) -> None:
    found = edge_attribution(tiny, CLEAN, CORRUPT, Logit(70))
    run = tiny.run({"clean": CLEAN, "corrupt": CORRUPT}, capture=["attn_out.0", "mlp_out.1"])
    step = 1e-4
    for sender, receiver in [
        ("attn_out.0", "mlp_resid.1"),
        ("attn_out.0", "attn_resid.2"),
        ("mlp_out.1", "resid_post.2"),
    ]:
        change = run.inputs["corrupt"][sender] - run.inputs["clean"][sender]
        ends = []
        for sign in (1, -1):
            hooks = [
                steer_hook(receiver, row, alpha=sign * step, positions=i) for i, row in enumerate(change) if row.any()
            ]
            ends.append(float(tiny.run(CLEAN, hooks=hooks, capture="logits")["logits"][-1][70]))
        named = receiver.replace("resid_post.2", "logits")
        cell = found.effect.sel(sender=sender, receiver=named)
        assert cell.item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-5)


def test_the_graph_has_the_edges_of_a_transformer() -> None:
    senders = ["embed", "z.0 head 1", "attn_out.0", "mlp_out.0", "attn_out.1"]
    receivers = ["attn_resid.0", "mlp_resid.0", "attn_resid.1", "mlp_resid.1", "resid_post.1"]
    assert edge_mask(senders, receivers).astype(int).tolist() == [
        [1, 1, 1, 1, 1],
        [0, 1, 1, 1, 1],
        [0, 1, 1, 1, 1],
        [0, 0, 1, 1, 1],
        [0, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_heads_sum_to_their_layer(family: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(family, tmp_path)
    with Client.inprocess(InProcessService.create(str(folder), dtype="float32", device="cpu")) as client:
        whole = edge_attribution(client, CLEAN, CORRUPT, Logit(70)).effect
        heads = edge_attribution(client, CLEAN, CORRUPT, Logit(70), heads=True).effect
        assert heads.axes["sender"][:3] == ("embed", "z.0 head 0", "z.0 head 1")
        for layer in range(3):
            parts = heads.sel(sender=[f"z.{layer} head {head}" for head in range(4)]).sum("sender").values
            together = whole.sel(sender=f"attn_out.{layer}").values
            assert np.abs(parts - together).max() <= 1e-4 * max(1.0, np.abs(together).max())


def test_heads_behind_a_norm_are_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint("gemma2", tmp_path)
    with Client.inprocess(InProcessService.create(str(folder), dtype="float32", device="cpu")) as client:
        with pytest.raises(Unsupported, match="do not sum to attn_out"):
            edge_attribution(client, CLEAN, CORRUPT, Logit(70), heads=True)
        assert np.abs(edge_attribution(client, CLEAN, CORRUPT, Logit(70)).effect.values).max() > 0


def test_integrated_gradients_are_a_mean_along_the_line(tiny: Client) -> None:
    one = edge_attribution(tiny, CLEAN, CORRUPT, Logit(70), steps=1)
    at_corrupt = edge_attribution(tiny, CORRUPT, CLEAN, Logit(70))  # its gradient is at the other end
    assert one.method == "EAP-IG"
    assert np.abs(one.effect.values + at_corrupt.effect.values).max() <= 1e-5 * np.abs(one.effect.values).max()
    several = edge_attribution(tiny, CLEAN, CORRUPT, Logit(70), steps=4)
    assert np.abs(several.effect.values - one.effect.values).max() > 1e-3


def test_bad_input(tiny: Client) -> None:
    with pytest.raises(InvalidArgument, match="equal lengths"):
        edge_attribution(tiny, CLEAN, CORRUPT + "i", Logit(70))
    with pytest.raises(InvalidArgument, match="outside the vocabulary"):
        edge_attribution(tiny, CLEAN, CORRUPT, Logit(9999))
