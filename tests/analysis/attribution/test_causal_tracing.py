"""Causal tracing: the noise, the windows, and the same states restored by single runs."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.attribution.causal_tracing import subject_positions, subject_sigma, trace, window_of
from probewire.clients import Client, InvalidArgument, Noise, hook, patch as patch_hook

PROMPT, SUBJECT = "abcdefgh", "cd"
WHERE = (3, 4)


def test_the_subject_is_where_its_letters_are(tiny: Client) -> None:
    item = tiny.tokenize(PROMPT)
    assert subject_positions(item, SUBJECT) == WHERE
    assert subject_positions(item, [-1, 2]) == (2, 8)
    for subject, match in [("x", "occurs 0 times"), ("", "occurs 0 times"), ([9], "are not in a prompt of 9 tokens")]:
        with pytest.raises(InvalidArgument, match=match):
            subject_positions(item, subject)
    with pytest.raises(InvalidArgument, match="occurs 2 times"):
        subject_positions(tiny.tokenize("abab"), "a")


def test_sigma_is_over_all_entries(tiny: Client) -> None:
    rows = tiny.run(PROMPT, capture="embed")["embed"][list(WHERE)]
    assert subject_sigma(tiny, [(PROMPT, SUBJECT)]) == pytest.approx(float(rows.std()), rel=1e-12)
    many = np.concatenate([rows, tiny.run("xyz", capture="embed")["embed"][2:3]])
    assert subject_sigma(tiny, [(PROMPT, SUBJECT), ("xyz", [2])]) == pytest.approx(float(many.std()), rel=1e-12)


def test_windows_are_romes(tiny: Client) -> None:
    info = tiny.describe()
    assert window_of(info, "resid_post", 1, 10) == ["resid_post.1"]
    assert window_of(info, "mlp_out", 1, 10) == ["mlp_out.0:3"]
    assert window_of(info, "mlp_out", 2, 3) == ["mlp_out.1:3"]  # 2 − 3 // 2 … 2 + 2, cut at the last layer
    assert window_of(info, "attn_out", 2, 1) == ["attn_out.2"]
    for site, layer, window, match in [
        ("embed", 0, 1, "no kind of site"),
        ("mlp_out", 3, 1, "0 … 2"),
        ("mlp_out", 0, 0, "window must be 1"),
    ]:
        with pytest.raises(InvalidArgument, match=match):
            window_of(info, site, layer, window)


def test_effects_are_what_single_runs_give(tiny: Client) -> None:
    found = trace(tiny, PROMPT, SUBJECT, answer="q", window=2, noise=1.5, seeds=3)
    token = tiny.token("q")
    assert found.effect.axes == {
        "site": ("resid_post", "mlp_out", "attn_out"),
        "layer": (0, 1, 2),
        "position": tuple(range(9)),
    }
    std = 1.5 * subject_sigma(tiny, [(PROMPT, SUBJECT)])
    assert (found.std, found.subject, found.answer) == (pytest.approx(std), WHERE, token)
    for site, layer, position in [("resid_post", 1, 4), ("mlp_out", 1, 3), ("attn_out", 2, 8)]:
        sites = window_of(tiny.describe(), site, layer, 2)
        changes = []
        for seed in range(3):
            noisy = hook("embed", Noise(std, seed), positions=WHERE, inputs="own")
            restored = [patch_hook(s, from_input="clean", positions=position, inputs="own") for s in sites]
            changes.append(probability(tiny, token, noisy, *restored) - probability(tiny, token, noisy))
        cell = found.effect.sel(site=site, layer=layer, position=position)
        assert cell.item() == pytest.approx(float(np.mean(changes)), abs=1e-10)
    assert found.clean == pytest.approx(probability(tiny, token), abs=1e-10)


def probability(client: Client, token: int, *hooks: object) -> float:
    run = client.run({"clean": PROMPT, "own": PROMPT}, hooks=hooks, capture="logits")
    row = run.inputs["own"]["logits"][-1].astype(np.float64)
    weights = np.exp(row - row.max())
    return float(weights[token] / weights.sum())


def test_restoring_the_last_state_restores_the_answer(tiny: Client) -> None:
    found = trace(tiny, PROMPT, SUBJECT, sites=["resid_post"], layers=[2], positions=[0, 8], seeds=2)
    assert found.effect.sel(site="resid_post", layer=2, position=8).item() == pytest.approx(
        found.total_effect, abs=1e-10
    )
    assert found.effect.sel(site="resid_post", layer=2, position=0).item() == pytest.approx(0.0, abs=1e-10)
    assert found.answer == int(np.argmax(tiny.run(PROMPT, capture="logits")["logits"][-1]))


def test_bad_input(tiny: Client) -> None:
    for options, match in [({"seeds": 0}, "seeds must be in"), ({"noise": 0.0}, "noise must be above 0")]:
        with pytest.raises(InvalidArgument, match=match):
            trace(tiny, PROMPT, SUBJECT, **options)
    with pytest.raises(InvalidArgument, match="not one"):
        trace(tiny, PROMPT, SUBJECT, answer="two")


def test_the_default_model_looks_up_the_subject_early_and_reads_it_late(default_client: Client) -> None:
    """Meng et al.'s finding, at a few layers: early states matter at the subject's last token, late ones at the end."""
    found = trace(
        default_client,
        "The Eiffel Tower is in the city of",
        "Eiffel Tower",
        answer=" Paris",
        sites=["resid_post"],
        layers=[4, 26],
        seeds=4,
    )
    assert found.total_effect > 0.1
    effect, last = found.effect.sel(site="resid_post"), len(found.tokens) - 1
    early, late = (dict(zip(range(last + 1), effect.sel(layer=layer).values, strict=True)) for layer in (4, 26))
    assert max(early, key=lambda p: early[p]) in found.subject
    assert max(late, key=lambda p: late[p]) == last
