"""Attribution patching: exact where the model is linear, first order where it is not."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from probewire.analysis.attribution.attribution_patching import attribution_patching
from probewire.analysis.attribution.patching import patch
from probewire.analysis.attribution.relp import relp_patching
from probewire.analysis.attribution.taylor import check_gradients, patterns
from probewire.clients import Client, InvalidArgument, Logit, LogitDifference, steer as steer_hook
from tests.analysis.attribution.linear_toy import LinearToy

CLEAN, CORRUPT = "abcdefgh", "abxdefyh"
METRIC = LogitDifference((65, 70), (80,))


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize("positions", [None, "all", [1, -1]])
def test_a_linear_model_is_patched_exactly(toy: LinearToy, direction: str, positions: object) -> None:
    prompts, sites = ([[1, 2, 3, 4], [5, 6, 7, 8]], [[1, 5, 3, 6], [2, 6, 9, 8]]), ["attn_out", "mlp_out", "resid_mid"]
    options = {"positions": positions, "direction": direction}
    exact = patch(toy, *prompts, sites, Logit(7), **options)
    found = attribution_patching(toy, *prompts, sites, Logit(7), **options)
    assert found.effect.axes == exact.effect.axes
    assert np.abs(found.effect.values - exact.effect.values).max() <= 1e-10
    sign = 1 if direction == "denoise" else -1
    assert np.array_equal(found.importance.values, sign * exact.effect.values) or np.allclose(
        found.importance.values, sign * exact.effect.values, atol=1e-10
    )


def test_it_is_the_derivative_of_the_metric(tiny: Client) -> None:
    """Finite differences of the metric along (clean − corrupt) at single cells."""
    found = attribution_patching(tiny, CLEAN, CORRUPT, ["mlp_out", "resid_pre"], METRIC, positions=[3, 7])
    run = tiny.run({"clean": CLEAN, "corrupt": CORRUPT}, capture=["mlp_out.*", "resid_pre.*"])
    step = 1e-4
    for site, layer, position in [("mlp_out", 0, 3), ("mlp_out", 1, 7), ("resid_pre", 2, 7), ("resid_pre", 1, 3)]:
        name = f"{site}.{layer}"
        change = run.inputs["clean"][name][position] - run.inputs["corrupt"][name][position]
        values = [measured(tiny, steer_hook(name, change, alpha=a, positions=position)) for a in (step, -step)]
        slope = (values[0] - values[1]) / (2 * step)
        cell = found.effect.sel(site=site, layer=layer, position=position)
        assert cell.item() == pytest.approx(slope, rel=1e-5, abs=1e-8)
    assert found.base.item() == pytest.approx(measured(tiny), abs=1e-10)


def measured(client: Client, *hooks: object) -> float:
    row = client.run(CORRUPT, hooks=hooks, capture="logits")["logits"][-1].astype(np.float64)
    return float((row[65] + row[70]) / 2 - row[80])


def test_the_integrated_gradient_accounts_for_the_whole_change(tiny: Client) -> None:
    total = measured_change(tiny)
    errors = []
    for steps in (2, 16, 64):
        found = attribution_patching(tiny, CLEAN, CORRUPT, "embed", METRIC, positions="all", steps=steps)
        assert f"{steps} steps" in found.method
        errors.append(abs(found.effect.item() - total))
    assert errors[2] < 0.05 * abs(total)
    assert errors[2] < errors[1] < errors[0]


def measured_change(client: Client) -> float:
    found = patch(client, CLEAN, CORRUPT, "embed", METRIC, positions="all")
    return found.effect.item()


def test_units_and_heads_sum_to_the_row(tiny: Client) -> None:
    rows = attribution_patching(tiny, CLEAN, CORRUPT, "mlp_act", METRIC).effect
    units = attribution_patching(tiny, CLEAN, CORRUPT, "mlp_act", METRIC, units=True).effect
    assert units.shape == (3, 9, 96)
    assert np.abs(units.sum("unit").values - rows.values).max() <= 1e-12
    z = attribution_patching(tiny, CLEAN, CORRUPT, "z", METRIC).effect
    heads = attribution_patching(tiny, CLEAN, CORRUPT, "z", METRIC, heads="all").effect
    attn_out = attribution_patching(tiny, CLEAN, CORRUPT, "attn_out", METRIC).effect
    assert np.abs(heads.sum("head").values - z.values).max() <= 1e-12
    assert np.abs(z.values - attn_out.values).max() <= 1e-10  # the projection is linear


def test_rules_change_the_estimate(tiny: Client) -> None:
    plain = attribution_patching(tiny, CLEAN, CORRUPT, "mlp_out", METRIC)
    linearised = relp_patching(tiny, CLEAN, CORRUPT, "mlp_out", METRIC)
    assert linearised.method == "RelP (ln, identity, half)"
    assert np.abs(plain.effect.values - linearised.effect.values).max() > 1e-3
    assert np.abs(plain.base.values - linearised.base.values).max() <= 1e-10


def test_sites_without_gradients_are_refused(tiny: Client) -> None:
    info = tiny.describe()
    sites = tuple(
        dataclasses.replace(s, gradients=s.name != "z", note="why" if s.name == "z" else "") for s in info.sites
    )
    check_gradients(dataclasses.replace(info, sites=sites), ["embed", "mlp_out.1"])
    with pytest.raises(InvalidArgument, match=r"z offers no gradients on torch \(why\); sites that do: resid_pre"):
        check_gradients(dataclasses.replace(info, sites=sites), ["embed", "z.1"])


def test_patterns_name_runs_of_layers() -> None:
    sites = ["embed", "z.0", "z.1", "z.3", "mlp_out.2", "mlp_out.1"]
    assert patterns(sites) == ("embed", "z.0:2", "z.3", "mlp_out.1:3")


def test_bad_input(tiny: Client) -> None:
    with pytest.raises(InvalidArgument, match="patching needs equal lengths"):
        attribution_patching(tiny, CLEAN, CORRUPT + "i", "resid_pre", METRIC)
    with pytest.raises(InvalidArgument, match="outside the vocabulary"):
        attribution_patching(tiny, CLEAN, CORRUPT, "resid_pre", Logit(9999))
