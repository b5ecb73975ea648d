"""What a gradient is taken of: coordinates, several targets, neighbours in a batch, paths, divergences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from probewire.backends.hooks.bound import BoundBackward
from probewire.backends.hooks.metrics import bind_metric
from probewire.backends.hooks.plan import bind
from probewire.backends.hooks.sequence import Sequence
from probewire.clients import capture, hook, patch
from probewire.protos.edits import Scale
from probewire.protos.errors import InvalidArgument, ResourceExhausted
from probewire.protos.gradients import IntegratedPath
from probewire.protos.metrics import Coordinate, Kl, Logit, LogitDifference, LogProb, Metric, TopLogits
from probewire.protos.model import Input
from probewire.protos.spec import Hook, Plan
from tests.parity.opened import OTHER, RULES, TOKENS, Opened, backend_of, both, gap

EXACT = 1e-12
"""Relative error of identities in float64."""
CLOSE = 1e-6
"""Relative error where values came through float32 on the way."""


@both
def test_what_comes_after_the_target_has_no_gradient(opened: Opened, backend: str) -> None:
    client = opened("llama", backend)
    target = Coordinate("mlp_act.1", 6, 5)
    found = client.gradients(TOKENS, target, at=["resid_pre.1", "mlp_act.*", "attn_probs.2", "logits"]).gradients
    assert found["resid_pre.1"][6].any()
    assert not found["resid_pre.1"][7:].any(), "later tokens"
    assert found["mlp_act.1"].sum() == found["mlp_act.1"][6, 5] == 1.0
    for later in ("mlp_act.2", "attn_probs.2", "logits"):
        assert not found[later].any(), later
    assert found["mlp_act.2"].shape == found["mlp_act.1"].shape


@both
@pytest.mark.parametrize("rules", [(), RULES])
@pytest.mark.parametrize("direct", [False, True])
def test_neighbours_do_not_cross(opened: Opened, backend: str, rules: tuple[str, ...], direct: bool) -> None:
    """Different lengths and different targets in one batch: each as if it were alone."""
    client, at = opened("llama", backend), ["embed", "mlp_act.*", "z.1"]
    inputs = {"a": TOKENS, "b": TOKENS[:5], "c": TOKENS, "d": OTHER[:9]}
    targets: dict[str, Metric] = {
        "a": Logit(7),
        "b": Coordinate("mlp_act.1", 4, 9),
        "c": Coordinate("mlp_act.2", 9, 5),
        "d": LogProb(3, -2),
    }
    found = client.gradients(inputs, targets, at=at, rules=rules, direct=direct)
    for name, tokens in inputs.items():
        alone = client.gradients(tokens, targets[name], at=at, rules=rules, direct=direct)
        assert found.inputs[name].metric == pytest.approx(alone.metric, rel=EXACT)
        for site in alone.gradients.sites:
            assert gap(found.inputs[name].gradients[site], alone.gradients[site]) <= EXACT, (name, site)


SEVERAL: dict[str, Metric] = {
    "a": Logit(7),
    "b": Coordinate("mlp_act.1", 4, 9),
    "c": Coordinate("mlp_act.2", 9, 5),
    "d": LogProb(3, -2),
    "e": Coordinate("mlp_act.1", 12, 60),
    "f": Coordinate("resid_mid.1", 6, 30),
    "g": Coordinate("mlp_gate.2", 9, 5),
    "h": TopLogits(5, 4),
    "i": Coordinate("mlp_in.1", 6, 3),
    "j": Coordinate("mlp_out.0", 5, 3),
    "k": Coordinate("z.1", 5, 3, head=3),
}


@both
@pytest.mark.parametrize("rules", [(), RULES])
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("others", [(), ("v.*", "mlp_gate.*", "mlp_in.*", "final_norm")])
def test_several_targets_of_one_prompt(
    opened: Opened, backend: str, rules: tuple[str, ...], direct: bool, others: tuple[str, ...]
) -> None:
    """One forward serves them all; each as if it were alone."""
    client, at = opened("llama", backend), ["embed", "mlp_act.*", *others]
    for names in ("abcdefghijk", "bce", "fk", "adh", "gj"):
        targets = {name: SEVERAL[name] for name in names}
        found = client.gradients(dict.fromkeys(names, TOKENS), targets, at=at, rules=rules, direct=direct).inputs
        for name, target in targets.items():
            alone = client.gradients(TOKENS, target, at=at, rules=rules, direct=direct)
            assert found[name].metric == pytest.approx(alone.metric, rel=EXACT)
            assert found[name].gradients.sites == alone.gradients.sites
            for site in alone.gradients.sites:
                _require_equal(found[name].gradients[site], alone.gradients[site], (names, name, site))


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_several_targets_of_one_prompt_and_the_gradient_at_logits(opened: Opened, backend: str) -> None:
    client, targets = opened("llama", backend), {"a": Logit(7), "b": LogProb(3, -2), "c": Coordinate("mlp_act.1", 4, 9)}
    found = client.gradients(dict.fromkeys("abc", TOKENS), targets, at=["logits"]).inputs
    for name, target in targets.items():
        alone = client.gradients(TOKENS, target, at=["logits"]).gradients["logits"]
        _require_equal(found[name].gradients["logits"], alone, name)


def _require_equal(found: Any, expected: Any, what: object) -> None:
    """To rounding; what nothing reaches is zero."""
    assert gap(found, expected) <= EXACT if expected.any() else not found.any(), what


@both
def test_several_inputs_of_one_prompt_may_ask_for_different_things(opened: Opened, backend: str) -> None:
    client = opened("llama", backend)
    inputs, targets = {"a": TOKENS, "b": TOKENS, "c": TOKENS}, {"a": Logit(7), "b": Logit(9), "c": Logit(7)}
    at = [
        Hook("embed", capture=_gradient(), inputs=("a",)),
        Hook("mlp_act.*", capture=_gradient(), inputs=("b",)),
        Hook("resid_mid.1", capture=_gradient(), where=hook("embed", Scale(1.0), positions=[2]).where, inputs=("c",)),
        Hook("resid_mid.1", capture=_gradient(), where=hook("embed", Scale(1.0), positions=[3]).where, inputs=("a",)),
    ]
    found = client.gradients(inputs, targets, at=at).inputs
    whole = client.gradients(TOKENS, Logit(7), at=["embed", "resid_mid.1"]).gradients
    other = client.gradients(TOKENS, Logit(9), at="mlp_act.*").gradients
    assert found["a"].gradients.sites == ("embed", "resid_mid.1")
    assert found["b"].gradients.sites == other.sites
    assert gap(found["a"].gradients["embed"], whole["embed"]) <= EXACT
    assert gap(found["a"].gradients["resid_mid.1"], whole["resid_mid.1"][[3]]) <= EXACT
    assert gap(found["c"].gradients["resid_mid.1"], whole["resid_mid.1"][[2]]) <= EXACT
    for site in other.sites:
        assert gap(found["b"].gradients[site], other[site]) <= EXACT


@both
def test_captures_narrow_and_reduce_gradients(opened: Opened, backend: str) -> None:
    client = opened("llama", backend)
    whole = client.gradients(TOKENS, Logit(7), at="resid_mid.1").gradients["resid_mid.1"]
    at = [
        Hook("resid_mid.1", capture=_gradient(), where=hook("embed", Scale(1.0), positions=[3, -1]).where),
        Hook("resid_mid.1", capture=_gradient(reduce="norm"), id="norm"),
        Hook("resid_mid.1", capture=_gradient(dtype="float32"), id="cast"),
    ]
    found = client.gradients(TOKENS, Logit(7), at=at).gradients
    assert np.array_equal(found.hook(0)["resid_mid.1"], whole[[3, -1]])
    assert gap(found["norm"], np.linalg.norm(whole, axis=-1)) <= CLOSE
    assert np.array_equal(found["cast"], whole.astype(np.float32))


def _gradient(**options: Any) -> Any:
    made = capture("embed", **options).capture
    assert made is not None
    return replace(made, gradient=True)


@both
@pytest.mark.parametrize("site", ["embed", "resid_mid.1", "mlp_act.1", "resid_post.1"])
@pytest.mark.parametrize("rules", [(), ("ln", "half")])
def test_a_path_is_the_mean_over_its_points(opened: Opened, backend: str, site: str, rules: tuple[str, ...]) -> None:
    client, at, steps = opened("llama", backend), [site, "mlp_act.2", "v.2", "attn_scores.2"], 4
    inputs: dict[str, Any] = {"own": TOKENS, "other": Input(token_ids=tuple(OTHER), source_only=True)}
    metric = LogitDifference((7,), (9,))
    found = client.gradients(inputs, metric, at=at, rules=rules, path=IntegratedPath("other", steps, site)).inputs[
        "own"
    ]
    own, other = (client.run(tokens, capture=site)[site] for tokens in (TOKENS, OTHER))
    points = []
    for k in range(steps):
        moved = patch(site, value=other + k / steps * (own - other))
        points.append(client.gradients(TOKENS, metric, at=at, hooks=[moved], rules=rules))
    assert found.measured == pytest.approx([point.metric for point in points], rel=CLOSE)
    with pytest.raises(InvalidArgument, match="measured 4 times"):
        _ = found.metric
    for name in points[0].gradients.sites:
        mean = np.mean([point.gradients[name] for point in points], axis=0)
        assert gap(found.gradients[name], mean) <= CLOSE, name


@both
def test_what_lies_past_an_early_target_comes_back_too(opened: Opened, backend: str) -> None:
    client, target = opened("llama", backend), Coordinate("mlp_act.0", 4, 9)
    found = client.gradients(TOKENS, target, at=["attn_probs.2", "mlp_act.0"], capture=["attn_probs.1"])
    assert not found.gradients["attn_probs.2"].any()
    assert found.gradients["mlp_act.0"][4, 9] == 1
    plain = client.run(TOKENS, capture="attn_probs.1")["attn_probs.1"]
    assert gap(found.captures["attn_probs.1"], plain) <= CLOSE


@both
def test_a_gradient_that_fits_in_no_batch_is_refused(opened: Opened, backend: str) -> None:
    client = opened("llama", backend)
    inputs: dict[str, Any] = {"own": [7] * 100, "other": Input(token_ids=(9,) * 100, source_only=True)}
    with pytest.raises(ResourceExhausted, match=r"takes 6,400 token rows .* lower path.steps"):
        client.gradients(inputs, Logit(7), at="embed", path=IntegratedPath("other", 64))


@both
def test_kl_is_the_divergence_from_the_baseline(opened: Opened, backend: str) -> None:
    client = opened("llama", backend)
    inputs: dict[str, Any] = {"own": TOKENS, "other": Input(token_ids=tuple(OTHER[:8]), source_only=True)}
    q = _log_softmax(client.run(TOKENS, capture="logits")["logits"])
    p = _log_softmax(client.run(OTHER[:8], capture="logits")["logits"])
    for metric, at, baseline in ((Kl("other"), -1, -1), (Kl("other", 9, 2), 9, 2), (Kl("other", -3), -3, -3)):
        expected = (np.exp(p[baseline]) * (p[baseline] - q[at])).sum()
        found = client.gradients(inputs, metric, at="embed").inputs["own"]
        assert found.metric == pytest.approx(expected, rel=CLOSE)
    assert client.gradients({"own": TOKENS, "copy": TOKENS}, {"own": Kl("copy"), "copy": Kl("own")}).inputs[
        "own"
    ].metric == pytest.approx(0.0, abs=CLOSE)


def _log_softmax(logits: Any) -> np.ndarray[Any, Any]:
    shifted = np.asarray(logits, dtype=np.float64) - np.max(logits, axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _sequence(backend: Any, hooks: list[Hook], tokens: list[int], metric: Metric) -> Sequence:
    """A bound sequence, as the scheduler makes it."""
    n = len(tokens)
    plan = bind(Plan(tuple(hooks)), backend, mode="gradients", input_name="x", tokens=tokens, prompt_length=n, n_rows=n)
    backend.bind(plan)
    made = Sequence("s", list(tokens), n, plan, backward=BoundBackward())
    made.metrics = (bind_metric(metric, backend.info, n_tokens=n, prompt_length=n, input_lengths={}, what="target"),)
    return made


@both
def test_a_hook_that_fails_fails_its_own_request_alone(opened: Opened, backend: str, faulty: Scale) -> None:
    """Requests of several users meet in one batch."""
    client = opened("llama", backend)
    read, fails = Hook("embed", capture=_gradient()), hook("attn_out.1", faulty)
    asked = [([read], TOKENS, Logit(7)), ([read, fails], OTHER, Logit(7)), ([read], OTHER[:6], LogProb(9, -2))]
    transport: Any = client._transport
    held = backend_of(client)
    found = transport._service._model.scheduler.call(
        lambda: held.gradients([_sequence(held, hooks, tokens, metric) for hooks, tokens, metric in asked])
    )
    assert isinstance(found[1].error, InvalidArgument)
    for (_, tokens, metric), result in ((asked[0], found[0]), (asked[2], found[2])):
        alone = client.gradients(tokens, metric, at="embed")
        assert result.error is None
        assert result.measured == pytest.approx((alone.metric,), rel=EXACT)
        assert gap(result.rows[0].values[0], alone.gradients["embed"]) <= EXACT
