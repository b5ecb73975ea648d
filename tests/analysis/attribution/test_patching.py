"""Activation patching: identities, and the same grid by single runs."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.attribution.patching import patch
from probewire.clients import Client, InvalidArgument, Kl, Logit, LogitDifference, align, patch as patch_hook
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


# ---- prompts of unequal length ---------------------------------------------------------------------------------------

LONGER = "abcdxyefgh"  # CLEAN with two letters more


def by_hand(client: Client, own: str, other: str, site: str, ours: list[int], theirs: list[int]) -> float:
    """The metric of `own` with rows of `other`, from single runs and a tensor that is sent along."""
    rows = client.run(other, capture=site)[site][theirs]
    run = client.run(own, hooks=patch_hook(site, value=rows, positions=ours), capture="logits")
    row = run["logits"][-1].astype(np.float64)
    return float((row[65] + row[70]) / 2 - row[80])


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("how", ["tokens", "end", "start"])
def test_aligned_prompts(tiny: Client, direction: str, how: str) -> None:
    sites = {"sites": ["resid_mid", "mlp_out"], "layers": [0, 2]}
    found = patch(tiny, LONGER, CLEAN, metric=METRIC, align=how, direction=direction, **sites)
    own, other = (CLEAN, LONGER) if direction == "denoise" else (LONGER, CLEAN)
    pairs = align(tiny.tokenize(own), tiny.tokenize(other), how)
    labels = {"tokens": pairs.positions, "end": tuple(range(-9, 0)), "start": tuple(range(9))}[how]
    assert found.metric.axes == {"site": ("resid_mid", "mlp_out"), "layer": (0, 2), "position": labels}
    for place in (0, 4, 8):
        for site in ("resid_mid", "mlp_out"):
            ours, theirs = pairs.pairs[place]
            expected = by_hand(tiny, own, other, f"{site}.2", [ours], [theirs])
            cell = found.metric.sel(site=site, layer=2, position=labels[place])
            assert cell.item() == pytest.approx(expected, abs=1e-9)
    assert found.clean.item() == pytest.approx(difference_of(tiny, LONGER), abs=1e-9)
    assert found.corrupt.item() == pytest.approx(difference_of(tiny, CLEAN), abs=1e-9)
    assert len(found.tokens) == len(own) + 1


def difference_of(client: Client, text: str) -> float:
    row = client.run(text, capture="logits")["logits"][-1].astype(np.float64)
    return float((row[65] + row[70]) / 2 - row[80])


def test_positions_from_the_end_need_no_alignment(tiny: Client) -> None:
    found = patch(tiny, LONGER, CLEAN, "resid_mid", METRIC, positions=[-1, -4])
    assert found.metric.axes == {"layer": (0, 1, 2), "position": (-1, -4)}
    for position in (-1, -4):
        expected = by_hand(tiny, CLEAN, LONGER, "resid_mid.1", [position], [position])
        assert found.metric.sel(layer=1, position=position).item() == pytest.approx(expected, abs=1e-9)


def test_roles_of_several_pairs(tiny: Client) -> None:
    clean, corrupt = [LONGER, "hgfedcba"], [CLEAN, "hgfxxdcba"]
    roles = [{"mark": ("xy", "d"), "end": (-1, -1)}, {"mark": ("e", "xx"), "end": (-1, -1)}]
    turned = [{role: place[::-1] for role, place in one.items()} for one in roles]  # from the one that runs: corrupt
    found = patch(tiny, clean, corrupt, "resid_mid", METRIC, align=turned)
    assert found.metric.axes == {"layer": (0, 1, 2), "position": ("mark", "end")}
    for pair, (ours, theirs) in enumerate(((4, 6), (5, 4))):
        expected = by_hand(tiny, corrupt[pair], clean[pair], "resid_mid.1", [ours], [theirs])
        cell = found.per_pair.sel(pair=pair, layer=1, position="mark")
        assert cell.item() == pytest.approx(expected, abs=1e-9)
    together = patch(tiny, clean, corrupt, "resid_mid", METRIC, align=turned, positions="all")
    expected = by_hand(tiny, CLEAN, LONGER, "resid_mid.1", [4, 8], [6, 10])
    assert together.per_pair.sel(pair=0, layer=1).item() == pytest.approx(expected, abs=1e-9)


def test_chosen_positions_of_the_one_that_runs(tiny: Client) -> None:
    found = patch(tiny, LONGER, CLEAN, "resid_mid", METRIC, align="tokens", positions=[5, -1])
    expected = by_hand(tiny, CLEAN, LONGER, "resid_mid.1", [5], [7])
    assert found.metric.sel(layer=1, position=5).item() == pytest.approx(expected, abs=1e-9)
    heads = patch(tiny, LONGER, CLEAN, "z", METRIC, align="tokens", positions="all", heads="all")
    assert heads.metric.axes == {"layer": (0, 1, 2), "head": (0, 1, 2, 3)}


def test_prompts_that_do_not_align(tiny: Client) -> None:
    def asked(clean=LONGER, corrupt=CLEAN, **more):
        return patch(tiny, clean, corrupt, "resid_mid", METRIC, **more)

    for call, why in (
        (asked, r"patching needs equal lengths.*align=\"tokens\"\), \"end\", or by roles.*or positions=\[-1\]"),
        (lambda: asked(positions=[3]), "patching needs equal lengths"),
        (lambda: asked(positions=[-1, 3]), "patching needs equal lengths"),
        (lambda: asked(positions="all"), "patching needs equal lengths"),
        (lambda: asked(positions=[-10]), r"positions \[-10\] are not in every prompt; the shortest has 9 tokens"),
        (lambda: asked(align="tokens", positions=[9]), r"pair 0: positions \[9\] of its corrupt prompt \(9 tokens\)"),
        (
            lambda: asked(direction="noise", align="tokens", positions=[5]),
            r"of its clean prompt .* paired are \[0, 1, 2",
        ),
        (lambda: asked(align={"x": ("q", 0)}), "pair 0: role 'x': 'q' occurs 0 times"),
        (lambda: asked(align=[{"x": (0, 0)}] * 2), "2 alignments for 1 pairs"),
        (
            lambda: asked([LONGER, "ab"], [CLEAN, "abc"], align="tokens"),
            r"the pairs align at 9, 3 places.*align by roles",
        ),
        (lambda: asked(align="tokens", positions="each"), "positions 'each'; allowed"),
    ):
        with pytest.raises(InvalidArgument, match=why):
            call()
