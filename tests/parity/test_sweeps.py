"""Sweeps: what is shared, what is computed whole, and separate runs give the same numbers; nothing else waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from probewire.clients import Client, capture, hook, patch, steer
from probewire.protos.edits import Add, Affine, Edit, Noise, ProjectOut, Replace, Scale, Zeros
from probewire.protos.metrics import Kl, Logit, LogitDifference, LogProb, Metric, Target, TopLogits, WeightedSum
from probewire.protos.model import Input, SiteInfo
from probewire.protos.sites import ATTENTION_SITES, HEAD_SITES
from probewire.protos.spec import AllOf, AnyOf, Condition, Hook
from probewire.protos.tensors import Tensor
from tests.parity.opened import OTHER, TOKENS, Opened, both

SAME = 1e-5
"""Error allowed between ways to compute a metric in float32, relative to the largest value or to 1."""

FAMILIES = ("llama", "gpt2", "gemma2", "gemma3_text", "phi3", "mistral")
"""Both norms' places, biases, softcaps, merged projections, windows."""
N = len(TOKENS)
METRICS: list[Metric] = [
    LogitDifference((5,), (9, 11)),
    LogProb(3, -4),
    Kl("other", 9, 4),
    TopLogits(3, 5, centred=True),
    Logit(200, 1),
    LogProb(tokens=(3, 9, 200), position=-4),
    Logit(tokens=(5, 9), centred=True),
    WeightedSum((LogProb(3, 2), Kl("other", 9, 4), LogitDifference((5,), (9, 11))), (2.0, -1.0, 0.5)),
]
WIDE = np.random.default_rng(4).normal(size=64).astype(np.float32)

Plans = Sequence[Sequence[Hook]]


def _inputs(**own: Any) -> dict[str, Any]:
    return {"x": Input(token_ids=tuple(TOKENS), **own), "other": Input(token_ids=tuple(OTHER), source_only=True)}


# ---- the meaning: separate runs --------------------------------------------------------------------------------------


def _measured(metric: Metric, logits: Any, baseline: Any, prompt: int) -> float:
    """A metric from [pos, vocab] logits, in numpy."""
    own, other = (np.asarray(rows, dtype=np.float64) for rows in (logits, baseline))
    if isinstance(metric, WeightedSum):
        parts = [_measured(part, logits, baseline, prompt) for part in metric.metrics]
        return float(np.dot(metric.weights, parts))
    at = metric.position + (prompt if metric.position < 0 else 0)
    row = own[at]
    if isinstance(metric, Logit):
        return float(row[list(metric.ids)].mean() - (row.mean() if metric.centred else 0.0))
    if isinstance(metric, LogitDifference):
        return float(row[list(metric.correct)].mean() - row[list(metric.wrong)].mean())
    if isinstance(metric, TopLogits):
        return float(np.sort(row)[-metric.k :].sum() - (metric.k * row.mean() if metric.centred else 0.0))
    q = _log_softmax(row)
    if isinstance(metric, LogProb):
        return float(np.log(np.exp(q[list(metric.ids)]).sum()))
    assert isinstance(metric, Kl)
    p = _log_softmax(other[metric.position if metric.baseline_position is None else metric.baseline_position])
    return float((np.exp(p) * (p - q)).sum())


def _log_softmax(row: Any) -> Any:
    shifted = row - row.max()
    return shifted - np.log(np.exp(shifted).sum())


def _by_runs(
    client: Client, plans: Plans, metrics: Sequence[Metric], inputs: dict[str, Any], base: Sequence[Hook]
) -> np.ndarray[Any, Any]:
    """[plan, target], a run each."""
    answering = {**inputs, "other": replace(inputs["other"], source_only=False)}
    prompt = inputs["x"].prompt_length or N
    rows: list[list[float]] = []
    for plan in plans:
        own = [replace(each, inputs=("x",)) for each in plan]
        found = client.run(answering, hooks=[*base, *own], capture="logits").inputs
        logits, baseline = (found[name].captures["logits"] for name in ("x", "other"))
        rows.append([_measured(metric, logits, baseline, prompt) for metric in metrics])
    return np.array(rows)


def _require_same(
    client: Client,
    plans: Plans,
    *,
    metrics: Sequence[Metric] = METRICS,
    inputs: dict[str, Any] | None = None,
    base: Sequence[Hook] = (),
) -> np.ndarray[Any, Any]:
    """Shared = not shared = separate runs; gives [plan, target]."""
    inputs = inputs or _inputs()
    shared, whole = (
        client.sweep(inputs, metrics, plans, hooks=base, share=share, progress=False).measured["x"]
        for share in (True, False)
    )
    expected = _by_runs(client, plans, metrics, inputs, base)
    scale = np.maximum(np.abs(expected).max(axis=0), 1.0)
    assert (np.abs(shared - whole) / scale).max() <= SAME
    assert (np.abs(shared - expected) / scale).max() <= SAME
    return shared


def _edit(site: SiteInfo, rng: np.random.Generator, n: int) -> Edit | None:
    """A random edit of a site; None: a patch from the other input."""
    heads = tuple({int(h) for h in rng.integers(site.widths[0], size=2)}) if site.name in HEAD_SITES else None
    if site.name in ATTENTION_SITES:
        keys = tuple({int(k) for k in rng.integers(N, size=2)})
        edits = [Scale(0.5, heads=heads), Replace(Zeros(), units=keys), None]
        return edits[rng.integers(len(edits))]
    vector = Tensor.of(rng.normal(size=site.widths[-1]).astype(np.float32))
    edits = [
        Scale(0.0, heads=heads),
        Scale(1.5),
        Noise(0.5, int(rng.integers(100))),
        Add(vector, 0.5, norm_match=True),
        ProjectOut(vector),
        Affine(Tensor.of(0.05 * vector.floats()[:, None]), Tensor.of(vector.floats()[None]), Tensor.of([0.3])),
        Replace(Zeros(), units=(0, 3)),
        None,
    ]
    return edits[rng.integers(len(edits))]


def _random_plans(client: Client, n: int, seed: int) -> list[list[Hook]]:
    info, rng = client.describe(), np.random.default_rng(seed)
    sites, plans = [s for s in info.sites if s.edits], list[list[Hook]]()
    for _ in range(n):
        hooks: list[Hook] = []
        for _ in range(rng.integers(1, 4)):
            site = sites[rng.integers(len(sites))]
            name = site.name if site.layers is None else f"{site.name}.{rng.choice(site.layers)}"
            positions = sorted({int(p) for p in rng.integers(0, N, rng.integers(1, 4))})
            edit = _edit(site, rng, len(positions))
            if edit is None:
                hooks.append(patch(name, from_input="other", positions=positions))
            elif rng.random() < 0.3:
                hooks.append(hook(name, edit, spans=[(positions[0], None)]))
            else:
                hooks.append(hook(name, edit, positions=positions))
        plans.append(hooks)
    return plans


@both
@pytest.mark.parametrize("family", FAMILIES)
def test_random_plans(opened: Opened, family: str, backend: str) -> None:
    client = opened(family, backend, "float32")
    found = _require_same(client, [*_random_plans(client, 40, seed=len(family)), []])
    assert (found[:-1].std(axis=0) > 1e-3).all(), "the plans change nothing"


@both
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mistral"])
def test_edits_within_attention(opened: Opened, family: str, backend: str) -> None:
    client = opened(family, backend, "float32")
    layers = range(client.describe().n_layers)
    plans = [[hook(f"attn_probs.{layer}", Replace(Zeros(), units=(1,)), positions=[9])] for layer in layers]
    plans += [[hook(f"attn_scores.{layer}", Scale(0.5, heads=(0, 2)), positions=[7, 12])] for layer in layers]
    plans += [[patch(f"attn_probs.{layer}", from_input="other", positions=[8])] for layer in layers]
    plans += [
        [hook("attn_probs.0", Scale(2.0), positions=[p]), hook("z.2", Scale(0.0), positions=[3])] for p in (2, 11)
    ]
    found = _require_same(client, plans)
    assert len(np.unique(found[:, 0].round(9))) > len(layers)


@both
def test_the_ends_of_the_model(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float32")
    sites = ("embed", "resid_pre.0", "resid_post.2", "final_norm", "logits")
    plans = [[hook(site, Scale(0.5), positions=[p])] for site in sites for p in (0, 5, 13)]
    plans += [[hook("logits", Replace(Zeros(), units=(5, 9)))], [hook("final_norm", Noise(1.0, 3))]]
    plans += [[hook("embed", Scale(0.5), positions=[6]), hook("logits", Scale(2.0), positions=[10])]]
    _require_same(client, plans)


@both
@pytest.mark.parametrize("family", FAMILIES)
def test_metrics_that_read_few_logits(opened: Opened, family: str, backend: str) -> None:
    """Only those tokens' logits are computed, unless a plan edits them."""
    client = opened(family, backend, "float32")
    metrics: list[Metric] = [
        Logit(5),
        LogitDifference((5, 200), (9,), -3),
        Logit(9, 2),
        Logit(tokens=(9, 77, 5), position=3),
        WeightedSum((Logit(30, 2), LogitDifference((5,), (9,))), (0.5, -2.0)),
    ]
    plans = [[hook(f"mlp_out.{layer}", Scale(0.0), positions=[p])] for layer in (0, 2) for p in (1, 10)]
    few = _require_same(client, [*plans, []], metrics=metrics)
    with_edited_logits = _require_same(client, [*plans, [], [hook("logits", Scale(0.5))]], metrics=metrics)
    assert np.abs(few - with_edited_logits[:-1]).max() <= SAME


@both
def test_raw_modules(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float32")
    sites = ("embed_tokens:output", "layers.1.mlp.down_proj:input", "layers.0.self_attn.q_proj:output", "norm:output")
    plans = [[hook(f"module:model.{site}", Scale(0.5), positions=[4, 9])] for site in sites]
    plans += [[*plans[1], hook("resid_post.0", Scale(0.5), positions=[11])]]
    found = _require_same(client, [*plans, []])
    assert (np.abs(found[:-1] - found[-1]).max(axis=1) > 1e-3).all()
    _require_same(client, [[hook("resid_post.1", Scale(0.5), positions=[7])], []], base=plans[1])


@both
def test_a_plan_may_be_of_some_inputs(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float32")
    plans = [[hook("resid_post.1", Scale(0.5), inputs=("a",))], []]
    for share in (True, False):
        found = client.sweep({"a": TOKENS, "b": OTHER}, Logit(5), plans, share=share, progress=False).measured
        assert abs(found["a"][0, 0] - found["a"][1, 0]) > 1e-3
        assert found["b"][0, 0] == pytest.approx(found["b"][1, 0], abs=SAME)


@both
def test_a_branch_is_edited_without_the_stream(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float32")
    plans = [[patch(f"{s}.{layer}", from_input="other")] for s in ("attn_resid", "mlp_resid") for layer in range(3)]
    _require_same(client, plans)


@both
def test_plans_that_change_nothing(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float32")
    nothing = [[], [hook("resid_post.1", Scale(0.0), token_ids=[1])], [hook("z.1", Scale(1.0), positions=[4])]]
    found = _require_same(client, [*nothing, [hook("z.1", Scale(0.0), positions=[4])]])
    assert np.array_equal(found[0], found[1])
    assert np.abs(found[2] - found[0]).max() <= SAME
    assert np.abs(found[3] - found[0]).max() > 1e-2
    assert np.array_equal(_require_same(client, [[]] * 3), np.tile(found[0], (3, 1)))


@both
def test_a_metric_before_the_edit_stays(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float32")
    metrics = [Logit(5, p) for p in range(N)]
    plans = [[], *([hook(f"resid_pre.{layer}", Scale(0.0), positions=[p])] for layer in (0, 2) for p in range(N))]
    found = _require_same(client, plans, metrics=metrics)
    for plan, p in enumerate([*range(N), *range(N)], start=1):
        assert np.abs(found[plan, :p] - found[0, :p]).max(initial=0.0) <= SAME
        assert abs(found[plan, p] - found[0, p]) > 1e-3


CONDITIONS = {
    "own site": Condition(0.0, unit=3),
    "an earlier site": Condition(0.1, site="resid_pre.0", unit=3, op="lt"),
    "the embedding": Condition(0.0, site="embed", unit=7),
    "a head": Condition(0.0, site="z.0", unit=1, head=2, op="le"),
    "latched, last": Condition(0.0, unit=7, latch="last"),
    "latched, mean": Condition(0.0, site="attn_out.0", unit=7, latch="mean", op="lt"),
}


@both
@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions(opened: Opened, backend: str, name: str) -> None:
    """Beyond the prompt of 6 tokens rows count as generated, which is where a latched condition holds."""
    client, when = opened("llama", backend, "float32"), CONDITIONS[name]
    sites = ["resid_post.1", "mlp_out.1", "resid_pre.2"] if when.head is None else ["resid_post.1", "mlp_in.2"]
    plans: list[list[Hook]] = [[hook(site, Add(Tensor.of(WIDE), 0.8), when=when)] for site in sites]
    plans += [[hook("resid_post.1", Scale(0.0), when=replace(when, threshold=1e6, op=op))] for op in ("gt", "lt")]
    if when.latch is None:
        plans += [[hook("resid_post.1", Scale(0.0), positions=[11, 12], when=when)]]
    plans += [[hook("resid_pre.1", Scale(0.5), positions=[9]), plans[0][0]], []]
    found = _require_same(client, plans, inputs=_inputs(prompt_length=6), metrics=[*METRICS[1:], Logit(5, 13)])
    assert np.array_equal(found[len(sites)], found[-1]), "never true: nothing changes"
    assert np.abs(found[len(sites) + 1] - found[-1]).max() > 1e-2


@both
@pytest.mark.parametrize("kind", [AllOf, AnyOf])
def test_conditions_together(opened: Opened, backend: str, kind: type[AllOf | AnyOf]) -> None:
    """A plan begins where the earliest of its conditions reads; one that latches makes it begin at the start."""
    client = opened("llama", backend, "float32")
    own, early, head, last = (CONDITIONS[name] for name in ("own site", "the embedding", "a head", "latched, last"))
    whens = [kind((own, early)), kind((head, own, early)), kind((own, last))]
    plans = [[hook(site, Scale(0.3), when=when)] for site in ("resid_post.1", "mlp_in.2") for when in whens]
    plans += [[hook("resid_post.2", Scale(0.5), positions=[11], when=whens[1])], []]
    found = _require_same(client, plans, inputs=_inputs(prompt_length=6), metrics=[*METRICS[1:], Logit(5, 13)])
    assert (np.abs(found[:6] - found[-1]).max(axis=1) > 1e-4).sum() >= 4


@both
def test_hooks_common_to_all(opened: Opened, backend: str) -> None:
    """They apply to sources, too, and before a plan's own."""
    client = opened("llama", backend, "float32")
    plans = _random_plans(client, 12, seed=9)
    plans += [[hook("resid_post.0", Scale(0.5))], [patch("resid_post.1", from_input="other", positions=[4])], []]
    for base in (
        [steer("resid_post.0", WIDE, 0.7)],
        [hook("mlp_act.1", Scale(0.0), positions=[3]), hook("logits", Scale(0.5))],
        [hook("resid_post.1", Add(Tensor.of(WIDE), 0.8), when=Condition(0.0, unit=3))],
        [patch("attn_out.1", from_input="other", positions=[2, 9])],
    ):
        with_base = _require_same(client, plans, base=base)
        assert np.abs(with_base[-1] - _require_same(client, [[]])[0]).max() > 1e-3


@both
def test_inputs_of_their_own_length_and_targets(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float32")
    inputs: dict[str, Any] = {"a": TOKENS, "b": OTHER[:9], "s": Input(token_ids=tuple(OTHER), source_only=True)}
    targets = [Target(Logit(5), ("a",)), Target(LogProb(9), ("a", "b")), Target(Kl("s", -1, -1), ("b",))]
    plans = [[patch(f"resid_post.{layer}", from_input="s", positions=[p])] for layer in range(3) for p in (1, 8)]
    swept = client.sweep(inputs, targets, plans, axes={"layer": range(3), "position": [1, 8]}, progress=False)
    assert swept.inputs == ("a", "b")
    assert {name: values.shape for name, values in swept.measured.items()} == {"a": (6, 2), "b": (6, 2)}
    found = swept.array("b", target=1)
    assert (found.dims, found.shape) == (("layer", "position"), (3, 2))
    baseline = client.run(OTHER, capture="logits")["logits"]
    for i, plan in enumerate(plans):
        run = client.run(inputs, hooks=[replace(plan[0], inputs=("a", "b"))], capture=hook("logits", capture=_read()))
        logits = {name: run.inputs[name].captures["logits"] for name in ("a", "b")}
        expected = {
            "a": [_measured(t.metric, logits["a"], baseline, N) for t in targets[:2]],
            "b": [
                _measured(LogProb(9), logits["b"], baseline, 9),
                _measured(Kl("s", 8, 13), logits["b"], baseline, 9),
            ],
        }
        for name, values in expected.items():
            assert swept.measured[name][i] == pytest.approx(values, abs=SAME, rel=SAME)
    assert found.sel(layer=1, position=8).item() == swept.measured["b"][3, 1]


def _read() -> Any:
    return capture("logits").capture


@both
def test_the_same_sweep_twice_is_the_same_to_the_bit(opened: Opened, backend: str) -> None:
    client = opened("llama", backend, "float32")
    plans = _random_plans(client, 20, seed=5)
    one, other = (client.sweep(_inputs(), METRICS, plans, progress=False).measured["x"] for _ in range(2))
    assert np.array_equal(one, other)
