"""Edge circuits: the ends, single edges against path patching, and several against a forward written out."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.attribution.edges import edge_attribution
from probewire.analysis.attribution.patching import patch
from probewire.analysis.attribution.path_patching import path_patching
from probewire.analysis.circuits.edge_circuits import acdc_edges, edge_circuits
from probewire.analysis.circuits.faithfulness import FRACTIONS, area_from_one, curve, mib
from probewire.clients import Client, InvalidArgument, Kl, LogitDifference, patch as patch_hook

CLEAN, CORRUPT = "abcdefgh", "abxdefyh"
METRIC = LogitDifference((65, 70), (80,))


def logit_difference(client: Client, text: str) -> float:
    row = client.run(text, capture="logits")["logits"][-1]
    return float((row[65] + row[70]) / 2 - row[80])


def test_with_all_edges_it_is_the_clean_prompt_and_with_none_the_corrupt_one(tiny: Client) -> None:
    model = edge_circuits(tiny, CLEAN, CORRUPT, METRIC)
    assert model.full == pytest.approx(logit_difference(tiny, CLEAN), abs=1e-9)
    assert model.empty == pytest.approx(logit_difference(tiny, CORRUPT), abs=1e-9)
    assert model.space.size == 1 + 2 + 3 + 4 + 5 + 6 + 7  # each receiver reads one sender more than the one before


def test_without_one_edge_it_is_path_patching(tiny: Client) -> None:
    model = edge_circuits(tiny, CLEAN, CORRUPT, METRIC)
    edges = [
        ("embed", "attn_resid.0"),
        ("attn_out.0", "mlp_resid.1"),
        ("mlp_out.1", "attn_resid.2"),
        ("embed", "resid_post.2"),
    ]
    masks = []
    for sender, receiver in edges:
        mask = model.space.exists.copy()
        mask[model.space.senders.index(sender), model.space.receivers.index(receiver)] = False
        masks.append(mask)
    found = model.means(masks)
    for (sender, receiver), value in zip(edges, found, strict=True):
        named = receiver.replace("resid_post.2", "logits")
        exact = path_patching(tiny, CLEAN, CORRUPT, [sender], [named], METRIC)
        assert value == pytest.approx(exact.per_pair.item(), abs=1e-9)


def test_cutting_all_that_a_node_sends_is_patching_it(tiny: Client) -> None:
    model = edge_circuits(tiny, CLEAN, CORRUPT, METRIC)
    exact = patch(tiny, CLEAN, CORRUPT, ["attn_out", "mlp_out"], METRIC, positions="all", direction="noise")
    for site in ("attn_out", "mlp_out"):
        for layer in range(3):
            mask = model.space.exists.copy()
            mask[model.space.senders.index(f"{site}.{layer}")] = False
            expected = exact.metric.sel(site=site, layer=layer).item()
            assert model.means([mask]).item() == pytest.approx(expected, abs=1e-9)


def test_several_pairs_and_many_masks_at_once(tiny: Client) -> None:
    rng = np.random.default_rng(0)
    clean, corrupt = [CLEAN, "hgfedcba"], [CORRUPT, "hgfxdcba"]
    both = edge_circuits(tiny, clean, corrupt, METRIC)
    masks = [rng.random(both.space.shape) < 0.7 for _ in range(40)]
    found = both.values(masks)
    for column in range(2):
        alone = edge_circuits(tiny, clean[column], corrupt[column], METRIC)
        for index in (0, 39):
            assert found[index, column] == pytest.approx(alone.means([masks[index]]).item(), abs=1e-9)


def test_acdc_keeps_the_edges_that_matter(tiny: Client) -> None:
    model = edge_circuits(tiny, CLEAN, CORRUPT, Kl("clean"))
    kept, kl = acdc_edges(model, tau=0.01)
    assert kl == pytest.approx(model.means([kept]).item(), abs=1e-9)
    assert 0 < kept.sum() < model.space.size
    assert not kept[~model.space.exists].any()
    strict, closer = acdc_edges(model, tau=1e-9)
    assert closer < kl
    assert strict.sum() > kept.sum()


def test_attribution_ranks_edges_better_than_chance(tiny: Client) -> None:
    model = edge_circuits(tiny, CLEAN, CORRUPT, METRIC)
    fractions = tuple(f for f in FRACTIONS if f >= 0.05)
    good = mib(model, edge_attribution(tiny, CLEAN, CORRUPT, METRIC, steps=5).importance, fractions=fractions)
    rng = np.random.default_rng(0)
    chance = [mib(model, rng.normal(size=model.space.shape), fractions=fractions).cmd for _ in range(5)]
    assert good.cmd < np.mean(chance)


def test_bad_input(tiny: Client) -> None:
    model = edge_circuits(tiny, CLEAN, CORRUPT, METRIC)
    with pytest.raises(InvalidArgument, match=r'the metric Kl\("clean"\)'):
        acdc_edges(model)
    with pytest.raises(InvalidArgument, match="boolean of shape"):
        model.means([np.ones((2, 2), dtype=bool)])
    with pytest.raises(InvalidArgument, match="edge scores need shape"):
        model.space.top(np.zeros((2, 2)), 1)
    with pytest.raises(InvalidArgument, match="the edges of the graph"):
        model.space.top(np.zeros(model.space.shape), 10**6)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_rankings_of_the_default_models_edges(default_client: Client) -> None:
    """As MIB finds on other models: the area between faithfulness and 1 shrinks from random to EAP to EAP-IG."""
    clean = "When Mary and John went to the store, John gave a drink to"
    corrupt = "When Mary and John went to the store, Mary gave a drink to"
    metric = LogitDifference((default_client.token(" Mary"),), (default_client.token(" John"),))
    model = edge_circuits(default_client, clean, corrupt, metric)
    rankings = [
        np.random.default_rng(0).normal(size=model.space.shape),
        edge_attribution(default_client, clean, corrupt, metric).importance.values,
        edge_attribution(default_client, clean, corrupt, metric, steps=5).importance.values,
    ]
    fractions = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    cmd = [area_from_one(curve(model, scores, fractions=fractions, absolute=True)) for scores in rankings]
    assert cmd[0] > 0.6
    assert cmd[0] > cmd[1] + 0.1
    assert cmd[1] > cmd[2] + 0.05


def test_means_in_place_of_dropped_edges_against_a_forward_by_hooks(tiny: Client) -> None:
    """Every edge out of one sender dropped is the sender replaced by its mean; all edges into the logits too."""
    clean, corrupt = [CLEAN, "hgfedcba"], [CORRUPT, "hgfxdcba"]
    model = edge_circuits(tiny, clean, corrupt, METRIC, ablation="mean")
    runs = tiny.run(corrupt, capture=["attn_out.1"], progress=False).inputs.values()
    mean = np.mean([np.asarray(run["attn_out.1"]) for run in runs], axis=0).astype(np.float32)
    mask = model.space.exists.copy()
    mask[model.space.senders.index("attn_out.1")] = False
    for text, value in zip(clean, model.values([mask])[0], strict=True):
        row = tiny.run(text, hooks=[patch_hook("attn_out.1", value=mean)], capture=["logits"])["logits"][-1]
        assert value == pytest.approx(float((row[65] + row[70]) / 2 - row[80]), abs=1e-5)
    assert model.full == pytest.approx(edge_circuits(tiny, clean, corrupt, METRIC).full, abs=1e-9)


def test_means_of_prompts_of_several_lengths(tiny: Client) -> None:
    clean, corrupt = [CLEAN, "hgfedc"], [CORRUPT, "hgfxdc"]
    model = edge_circuits(tiny, clean, corrupt, METRIC, ablation="mean")
    rows = [np.asarray(tiny.run(text, capture=["mlp_out.0"])["mlp_out.0"], dtype=np.float64) for text in corrupt]
    at = model.space.senders.index("mlp_out.0")
    put = model.outputs[0][1][at]
    np.testing.assert_allclose(put[0], np.mean([one[0] for one in rows], axis=0), rtol=1e-5, atol=1e-6)
    rest = np.concatenate([one[1:] for one in rows]).mean(axis=0)
    np.testing.assert_allclose(put[1:], np.broadcast_to(rest, put[1:].shape), rtol=1e-5, atol=1e-6)
    with pytest.raises(InvalidArgument, match="of edges there are patch, mean"):
        edge_circuits(tiny, clean, corrupt, METRIC, ablation="zero")
