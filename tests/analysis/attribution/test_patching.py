"""Activation patching: identities, and the same grid by single runs."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.attribution.patching import patch
from probewire.clients import Client, InvalidArgument, Kl, Logit, LogitDifference, patch as patch_hook
from tests.analysis.attribution.linear_toy import LinearToy

CLEAN, CORRUPT = "abcdefgh", "abxdefyh"
METRIC = LogitDifference((65, 70), (80,))


def difference(client: Client, text: str, *hooks: object) -> float:
    """The metric of one run, from its logits."""
    run = client.run({"clean": CLEAN, "corrupt": CORRUPT}, hooks=hooks, capture="logits")
    row = run.inputs[text]["logits"][-1].astype(np.float64)
    return float((row[65] + row[70]) / 2 - row[80])


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_the_grid_is_what_single_runs_give(tiny: Client, direction: str) -> None:
    found = patch(tiny, CLEAN, CORRUPT, ["attn_out", "mlp_out"], METRIC, positions=[3, -2], direction=direction)
    assert found.metric.axes == {"site": ("attn_out", "mlp_out"), "layer": (0, 1, 2), "position": (3, -2)}
    own, other = ("corrupt", "clean") if direction == "denoise" else ("clean", "corrupt")
    for site in ("attn_out", "mlp_out"):
        for layer in range(3):
            for position in (3, -2):
                hook = patch_hook(f"{site}.{layer}", from_input=other, positions=position, inputs=own)
                expected = difference(tiny, own, hook)
                cell = found.metric.sel(site=site, layer=layer, position=position)
                assert cell.item() == pytest.approx(expected, abs=1e-10)
    assert found.clean.item() == pytest.approx(difference(tiny, "clean"), abs=1e-10)
    assert found.corrupt.item() == pytest.approx(difference(tiny, "corrupt"), abs=1e-10)


def test_all_of_the_first_residual_stream_is_the_clean_prompt(tiny: Client) -> None:
    found = patch(tiny, CLEAN, CORRUPT, "resid_pre.0", METRIC, positions="all")
    assert found.normalised.item() == pytest.approx(1.0, abs=1e-10)
    kl = patch(tiny, CLEAN, CORRUPT, "resid_pre.0", Kl("clean"), positions="all")
    assert kl.metric.item() == pytest.approx(0.0, abs=1e-6)
    assert kl.corrupt.item() > 1e-3


def test_patching_a_prompt_with_itself_changes_nothing(tiny: Client) -> None:
    found = patch(tiny, CLEAN, CLEAN, ["resid_pre", "mlp_act"], METRIC)
    assert np.abs(found.effect.values).max() <= 1e-10
    with pytest.raises(InvalidArgument, match="no scale to normalise by"):
        _ = found.normalised


def test_positions_before_the_change_do_not_matter(tiny: Client) -> None:
    found = patch(tiny, CLEAN, CORRUPT, "resid_post", METRIC)  # they differ from position 3 on
    assert np.abs(found.effect.sel(position=[0, 1, 2]).values).max() <= 1e-10
    assert np.abs(found.effect.sel(layer=[0, 1], position=3).values).min() > 1e-6
    assert found.tokens[3] == "x"


def test_heads_one_by_one(tiny: Client) -> None:
    found = patch(tiny, CLEAN, CORRUPT, "z", METRIC, positions="all", heads="all")
    assert found.metric.axes == {"layer": (0, 1, 2), "head": (0, 1, 2, 3)}
    hook = patch_hook("z.1", from_input="clean", heads=(2,), inputs="corrupt")
    assert found.metric.sel(layer=1, head=2).item() == pytest.approx(difference(tiny, "corrupt", hook), abs=1e-10)


def test_several_pairs_are_averaged(tiny: Client) -> None:
    clean, corrupt, metrics = [CLEAN, "hgfedcba"], [CORRUPT, "hgfxdcba"], [METRIC, Logit(70)]
    both = patch(tiny, clean, corrupt, "resid_mid", metrics)
    single = [patch(tiny, a, b, "resid_mid", m) for a, b, m in zip(clean, corrupt, metrics, strict=True)]
    mean = np.mean([one.metric.values for one in single], axis=0)
    assert np.abs(both.metric.values - mean).max() <= 1e-10
    alone = np.concatenate([one.per_pair_effect.values for one in single])
    assert np.abs(both.per_pair_effect.values - alone).max() <= 1e-10
    low, high = (np.mean([getattr(one, side).item() for one in single]) for side in ("corrupt", "clean"))
    assert both.normalised.values == pytest.approx((mean - low) / (high - low), abs=1e-9)


def test_a_linear_model_adds_up(toy: LinearToy) -> None:
    found = patch(toy, [1, 2, 3, 4], [1, 5, 3, 6], "resid_pre", Logit(7))
    total = found.clean.item() - found.corrupt.item()
    assert found.effect.sum("position").values == pytest.approx([total] * 3, abs=1e-10)


def test_bad_input(tiny: Client) -> None:
    with pytest.raises(InvalidArgument, match="token id 9999 is outside the vocabulary"):
        patch(tiny, CLEAN, CORRUPT, "resid_pre", Logit(9999))
    with pytest.raises(InvalidArgument, match="patching needs equal lengths"):
        patch(tiny, CLEAN, CORRUPT + "i", "resid_pre", METRIC)
    with pytest.raises(InvalidArgument, match="the pairs have 5, 9 tokens"):
        patch(tiny, [CLEAN, "abcd"], [CORRUPT, "abxd"], "resid_pre", METRIC)
