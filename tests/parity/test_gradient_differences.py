"""Gradients against finite differences at every site and for every metric, and past every edit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probewire.clients import Client, ablate, capture, hook, patch, steer
from probewire.protos.edits import Add, Affine, Clamp, Edit, LowRank, Noise, ProjectOut, Scale
from probewire.protos.metrics import Coordinate, Kl, Logit, LogitDifference, LogProb, Metric, TopLogits, WeightedSum
from probewire.protos.model import Input, ModelInfo, SiteInfo
from probewire.protos.sites import ATTENTION_SITES
from probewire.protos.spec import AllOf, Condition, Hook
from probewire.protos.tensors import Tensor
from tests.parity.opened import OTHER, TOKENS, Opened, at_all, both, gap, sites_with_gradients

DIFFERENCE = 1e-8
"""Error of a gradient against a five-point difference in float64, relative to the difference or to 0.1."""
STEP = 2.0**-15
"""Of differences: a power of two, as step · vector is computed in float32."""
EXACT = 1e-12
"""Relative error of identities in float64."""
EDITED = 1e-5
"""Relative error of a gradient past an edit, in float32."""

N = len(TOKENS)
RNG = np.random.default_rng(0)
WIDE = RNG.normal(size=64).astype(np.float32)

METRICS: dict[str, Metric] = {
    "logit": Logit(7, 9),
    "centred logit": Logit(7, centred=True),
    "logit difference": LogitDifference((7, 8), (200,), -3),
    "top logits": TopLogits(5),
    "centred top logits": TopLogits(4, 10, centred=True),
    "mean logit": Logit(tokens=(7, 40, 200), position=9),
    "log-probability": LogProb(40, 11),
    "log-probability of a set": LogProb(tokens=(40, 41, 7), position=11),
    "kl": Kl("other", -2, 5),
    "weighted sum": WeightedSum(
        (LogProb(tokens=(40, 7), position=11), Kl("other", 12, 5), Logit(3, centred=True)), (1.0, -0.5, 0.25)
    ),
    "a neuron": Coordinate("mlp_act.2", 9, 5),
    "a unit of a head": Coordinate("z.2", -1, 3, head=2),
    "a direction": Coordinate("resid_post.1", 8, direction=Tensor.of(WIDE)),
}


MOVED = [2, 5, *range(8, N)]
"""Not all tokens: equal shifts of all keys would change nothing."""
KEYS = [0, 2, 5]


def _push(info: ModelInfo, site: SiteInfo, step: float, name: str) -> tuple[Hook, np.ndarray[Any, Any], str]:
    """An edit that moves a site by step times a fixed direction at many tokens, the direction, and the site's name."""
    where = site.name if site.layers is None else f"{site.name}.1"
    rng = np.random.default_rng(sum(map(ord, site.name)))
    if site.name in ATTENTION_SITES:
        vector = rng.normal(size=(info.n_heads, 3)).astype(np.float32)
        edit = Add(Tensor.of(vector), step, units=list(KEYS))
    else:
        vector = rng.normal(size=site.widths).astype(np.float32)
        edit = Add(Tensor.of(vector), step)
    return hook(where, edit, positions=MOVED, inputs=name), vector, where


def _along(site: str, gradient: np.ndarray[Any, Any], vector: np.ndarray[Any, Any]) -> float:
    """The derivative along the direction, at all of these tokens at once."""
    if site.startswith(("attn_scores", "attn_probs")):
        seen = np.tril(np.ones(gradient.shape[1:]))  # edits never reach masked keys
        return float((gradient * seen)[:, MOVED][:, :, KEYS].sum(1).ravel() @ vector.ravel())
    return float((gradient[MOVED] * vector).sum())


def _difference(
    client: Client, site: SiteInfo, metric: Metric, hooks: list[Hook]
) -> tuple[float, np.ndarray[Any, Any], str]:
    """Five-point difference of the metric along a site's direction."""
    info, factors = client.describe(), {"a": -2, "b": -1, "c": 1, "d": 2}
    pushes = [_push(info, site, factor * STEP, name) for name, factor in factors.items()]
    inputs: dict[str, Any] = dict.fromkeys(factors, TOKENS)
    inputs["other"] = Input(token_ids=tuple(OTHER), source_only=True)
    found = client.gradients(inputs, metric, hooks=[*hooks, *(push for push, _, _ in pushes)])
    a, b, c, d = (found.inputs[name].metric for name in factors)
    return (a - 8 * b + 8 * c - d) / (12 * STEP), pushes[0][1], pushes[0][2]


def _require_differences(
    client: Client, metric: Metric, hooks: list[Hook], sites: list[SiteInfo], at: list[str]
) -> None:
    inputs: dict[str, Any] = {"own": TOKENS, "other": Input(token_ids=tuple(OTHER), source_only=True)}
    gradients = client.gradients(inputs, metric, at=at, hooks=hooks).inputs["own"].gradients
    moved = 0
    for site in sites:
        measured, vector, where = _difference(client, site, metric, hooks)
        derived = _along(where, gradients[where], vector)
        assert abs(derived - measured) <= DIFFERENCE * max(abs(measured), 0.1), (where, derived, measured)
        moved += measured != 0.0
    assert moved >= 5, "most sites must matter, or nothing was tested"


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_gradients_are_finite_differences(opened: Opened, family: str, kind: str) -> None:
    client, metric = opened(family, "torch"), METRICS[kind]
    info = client.describe()
    _require_differences(client, metric, [], sites_with_gradients(info), at_all(info))


EDITS: dict[str, Hook] = {
    "add": steer("resid_post.0", WIDE, 0.5),
    "norm match": steer("resid_mid.1", WIDE, 0.7, norm_match=True),
    "scale a head": hook("z.0", Scale(-0.5, heads=(1,)), spans=[(3, None)]),
    "clamp": hook("mlp_act.0", Clamp(min=-0.05, max=0.1)),
    "ablate": ablate("mlp_act.0", units=range(0, 96, 2)),
    "noise": hook("embed", Noise(0.2, 3)),
    "patch": patch("attn_out.0", from_input="other", positions=[4, 5, 8]),
    "attention": hook("attn_probs.0", Scale(0.5, heads=(0, 3)), positions=[6, 13]),
    "logits": hook("logits", Scale(2.0), positions=[9, 11]),
    "affine": hook("resid_post.0", Affine(Tensor.of(WIDE[:, None]), Tensor.of(WIDE[None]), Tensor.of([0.5]), 0.01)),
    "affine of a head": hook("q.1", Affine(Tensor.of(WIDE.reshape(16, 4)), Tensor.of(WIDE.reshape(4, 16)), heads=(2,))),
    "affine of some rows": hook(
        "resid_mid.1",
        Affine(Tensor.of(WIDE[:3, None]), Tensor.of(WIDE[None, 3:6]), units=(5, 9, 60)),
        when=AllOf((Condition(0.0, site="embed", unit=3), Condition(-0.3, unit=7, normalise=True))),
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_edits_are_part_of_what_is_differentiated(opened: Opened, name: str) -> None:
    client = opened("llama", "torch")
    info, edit = client.describe(), EDITS[name]
    sites = [s for s in info.sites if s.name in ("embed", "resid_pre", "q", "v", "attn_probs", "resid_mid", "mlp_gate")]
    at = [s.name if s.layers is None else f"{s.name}.1" for s in sites]
    metric, inputs = LogProb(40, 11), {"own": TOKENS, "other": Input(token_ids=tuple(OTHER), source_only=True)}
    _require_differences(client, metric, [edit], sites, at)
    plain, edited = (client.gradients(inputs, metric, at="embed", hooks=h).inputs["own"] for h in ([], [edit]))
    assert gap(edited.gradients["embed"], plain.gradients["embed"]) > 1e-3, "the edit changes nothing"


@both
def test_a_gradient_is_of_the_value_after_all_edits(opened: Opened, backend: str) -> None:
    client, scale = opened("llama", backend), hook("resid_post.0", Scale(0.5))
    found = client.gradients(TOKENS, Logit(7), at=["resid_post.0", "resid_pre.1"], hooks=[scale])
    assert np.array_equal(found.gradients["resid_post.0"], found.gradients["resid_pre.1"])
    mlp = client.gradients(TOKENS, Logit(7), at=["mlp_out.0", "mlp_resid.0", "resid_mid.0"], hooks=[scale]).gradients
    assert gap(mlp["mlp_out.0"], 0.5 * found.gradients["resid_post.0"]) <= EXACT
    assert gap(mlp["resid_mid.0"], mlp["mlp_out.0"] + mlp["mlp_resid.0"]) <= 1e-7, "branch and stream"


DIRECTIONS = RNG.normal(size=(2, 64)).astype(np.float32)
A, B = RNG.normal(size=(64, 2)).astype(np.float32), RNG.normal(size=(2, 64)).astype(np.float32)
LINEAR: dict[str, Edit] = {
    "project out": ProjectOut(Tensor.of(DIRECTIONS)),
    "add": Add(Tensor.of(WIDE)),
    "clamp": Clamp(min=-0.1, max=0.2),
    "units": Scale(0.0, units=(3, 60)),
    "noise": Noise(0.3, 1),
    "affine": Affine(Tensor.of(A), Tensor.of(B), Tensor.of([1.0, -2.0]), 0.3),
}


@both
@pytest.mark.parametrize("name", LINEAR)
def test_a_gradient_passes_an_edit_as_its_transpose(opened: Opened, backend: str, name: str) -> None:
    """What the MLP gives reaches the stream through the edit alone."""
    client, edit = opened("llama", backend, "float32"), LINEAR[name]
    found = client.gradients(
        TOKENS, LogProb(40, 11), at=["mlp_out.0", "resid_post.0"], capture=capture("resid_post.0", before=True),
        hooks=[hook("resid_post.0", edit)],
    )  # fmt: skip
    after, raw = found.gradients["resid_post.0"], found["resid_post.0"]
    expected = after.copy()
    if name == "project out":
        basis, _ = np.linalg.qr(DIRECTIONS.T.astype(np.float64))
        expected = after - after @ basis @ basis.T
    elif name == "clamp":
        expected = after * ((raw >= -0.1) & (raw <= 0.2))
    elif name == "units":
        expected[:, [3, 60]] = 0.0
    elif name == "affine":
        expected = after + 0.3 * after @ (A.astype(np.float64) @ B).T
    assert gap(found.gradients["mlp_out.0"], expected) <= EDITED


@both
def test_a_low_rank_edit_adds_to_the_weights_transpose(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float32")
    edit = hook("attn_out.0", LowRank(Tensor.of(A), Tensor.of(B), 0.3))
    found = client.gradients(TOKENS, Logit(7), at=["z.0", "attn_out.0"], hooks=[edit]).gradients
    weight = client.weights("model.layers.0.self_attn.o_proj.weight", progress=False)  # [out, in]
    expected = found["attn_out.0"] @ (weight + 0.3 * (A @ B).T)
    assert gap(found["z.0"].reshape(N, -1), expected) <= EDITED
