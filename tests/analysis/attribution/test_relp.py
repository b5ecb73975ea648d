"""RelP: conservation, the two rule sets, and scores at neurons."""

from __future__ import annotations

import numpy as np
import pytest

from probewire.analysis.attribution.attribution_patching import attribution_patching
from probewire.analysis.attribution.patching import patch
from probewire.analysis.attribution.relp import GRAPH_RULES, PATCHING_RULES, relp, relp_patching
from probewire.clients import Client, InvalidArgument, Logit, LogitDifference, TopLogits

PROMPT = "abcdefgh"


def test_the_relevance_of_all_embeddings_is_the_metric(tiny: Client) -> None:
    found = relp(tiny, PROMPT, "embed", TopLogits(5), positions="all")
    assert found.mean.item() == pytest.approx(found.metric.item(), rel=1e-12)
    assert found.rules == GRAPH_RULES


@pytest.mark.parametrize("rule", GRAPH_RULES)
def test_no_rule_can_be_left_out(tiny: Client, rule: str) -> None:
    rules = tuple(one for one in GRAPH_RULES if one != rule)
    found = relp(tiny, PROMPT, "embed", TopLogits(5), rules=rules, positions="all")
    assert abs(found.mean.item() / found.metric.item() - 1) > 1e-3


def test_every_residual_stream_conserves(tiny: Client) -> None:
    found = relp(tiny, PROMPT, ["resid_pre", "resid_mid", "resid_post"], Logit(70))
    assert found.mean.sum("position").values == pytest.approx(found.metric.item(), rel=1e-10)


def test_neurons_are_scored_one_by_one(tiny: Client) -> None:
    found = relp(tiny, [PROMPT, "hgfedcba"], "mlp_act", Logit(70), units=True)
    assert found.per_prompt.dims == ("prompt", "layer", "position", "unit")
    assert found.per_prompt.shape == (2, 3, 9, 96)
    rows = relp(tiny, [PROMPT, "hgfedcba"], "mlp_out", Logit(70))
    assert np.abs(found.mean.sum("unit").values - rows.mean.values).max() <= 1e-10  # down_proj is linear


def test_paired_scores_are_differences_times_one_gradient(tiny: Client) -> None:
    corrupt = "abxdefyh"
    found = relp_patching(tiny, PROMPT, corrupt, "mlp_act", Logit(70), units=True)
    gradients = tiny.gradients(corrupt, Logit(70), at=["mlp_act.*"], rules=PATCHING_RULES).gradients.stack("mlp_act")
    run = tiny.run([PROMPT, corrupt], capture=["mlp_act.*"])
    change = run.inputs["0"].stack("mlp_act") - run.inputs["1"].stack("mlp_act")
    assert np.abs(found.effect.values - change * gradients).max() <= 1e-10


def test_bad_input(tiny: Client) -> None:
    with pytest.raises(InvalidArgument, match="have 4, 5 tokens"):
        relp(tiny, ["abc", "abcd"], "mlp_out", Logit(70))
    assert relp(tiny, ["abc", "abcd"], "mlp_out", Logit(70), positions=[-1]).mean.shape == (3, 1)
    with pytest.raises(InvalidArgument, match="1 metrics for 2 prompts"):
        relp(tiny, ["abc", "abd"], "mlp_out", [Logit(70)])
    with pytest.raises(InvalidArgument, match="unknown rules"):
        relp(tiny, "abc", "mlp_out", Logit(70), rules=("LN",))


def test_it_tracks_patching_of_the_default_model(default_client: Client) -> None:
    """IOI, every layer and position of mlp_out: floors of the reference figures, on one prompt."""
    clean = "When Mary and John went to the store, John gave a drink to"
    corrupt = "When Mary and John went to the store, Mary gave a drink to"
    metric = LogitDifference((default_client.token(" Mary"),), (default_client.token(" John"),))
    exact = patch(default_client, clean, corrupt, "mlp_out", metric, progress=False)
    assert exact.clean.item() == pytest.approx(6.12, abs=0.05)
    assert exact.corrupt.item() == pytest.approx(-5.49, abs=0.05)
    found = {
        "AtP": attribution_patching(default_client, clean, corrupt, "mlp_out", metric),
        "RelP": relp_patching(default_client, clean, corrupt, "mlp_out", metric),
    }
    r = {name: np.corrcoef(one.effect.values.ravel(), exact.effect.values.ravel())[0, 1] for name, one in found.items()}
    assert r["RelP"] >= 0.9
    assert r["RelP"] > r["AtP"] + 0.05
