"""Directions, their removal from weights, gates and detectors, on a planted behaviour and against hooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from probewire.analysis.editing.safety import (
    ablate_direction,
    ablation_hooks,
    behaviour_direction,
    behaviour_present,
    detector,
    gate,
    induce_direction,
    redirect,
    score_behaviour,
    select_direction,
)
from probewire.analysis.editing.safety.behaviour import logodds
from probewire.analysis.steering import fit_condition
from probewire.clients import Add, Client, InvalidArgument, ProjectOut, Tensor, capture, hook
from probewire.protos.variants.use import VariantUse
from tests.analysis.editing.conftest import opened
from tests.analysis.editing.safety.conftest import PLANTED, REFUSAL, prompts
from tests.analysis.editing.served import as_hooks
from tests.backends.derived import write
from tests.backends.uneven import SUMMED, UNEVEN
from tests.parity.opened import TOKENS, Opened, gap

RNG = np.random.default_rng(4)
DIRECTION = RNG.normal(size=64)


@pytest.mark.parametrize("backend", ["torch", "mlx"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "phi3"])
def test_weights_without_a_direction_are_hooks_that_project_it_out(
    opened_here: Opened, family: str, backend: str
) -> None:
    client = opened_here(family, backend, "float32")
    variant = ablate_direction(client, 3 * DIRECTION, name="without")
    assert len(variant.deltas) == 2 * client.describe().n_layers
    assert {delta.rank for delta in variant.deltas.values()} == {1}
    assert any(delta.bias is not None for delta in variant.deltas.values()) == (family == "gpt2")
    reads = ["resid_post.*", "logits"]
    ours, theirs = (
        client.run(TOKENS, hooks=hooks, capture=reads, progress=False)
        for hooks in (as_hooks(variant), ablation_hooks(DIRECTION))
    )
    assert gap(ours["logits"], theirs["logits"]) <= 1e-5
    assert gap(client.run(TOKENS, capture="logits", progress=False)["logits"], theirs["logits"]) > 1e-2
    unit = DIRECTION / np.linalg.norm(DIRECTION)
    for layer in range(client.describe().n_layers):
        rows = np.asarray(ours[f"resid_post.{layer}"], dtype=np.float64)
        assert (np.abs(rows @ unit) / np.linalg.norm(rows, axis=1)).max() <= 1e-5


def test_families_with_norms_behind_their_writers_get_hooks(opened_here: Opened) -> None:
    client = opened_here("gemma2", "torch", "float32")
    variant = ablate_direction(client, DIRECTION)
    assert not variant.deltas
    assert [one.site for one in variant.plan.hooks] == ["embed", "attn_out.*", "mlp_out.*"]
    assert all(isinstance(one.edit, ProjectOut) for one in variant.plan.hooks)
    with pytest.raises(InvalidArgument, match="norms behind its writers"):
        ablate_direction(client, DIRECTION, weights_only=True)
    assert [one.site for one in induce_direction(client, DIRECTION, 1).plan.hooks] == ["mlp_out.1"]


@pytest.mark.parametrize("kind", ["falcon_h1", "granite"])
def test_where_more_than_the_writers_writes_all_is_hooks(kind: str, tmp_path: Path) -> None:
    """Falcon-H1's Mamba writes beside w_o; Granite's stream takes half of what w_down gives."""
    with opened(write(kind, tmp_path, **{**UNEVEN, **SUMMED}[kind])) as client:
        variant = ablate_direction(client, DIRECTION)
        assert not variant.deltas
        with pytest.raises(InvalidArgument, match="weights alone do not take a direction out"):
            ablate_direction(client, DIRECTION, weights_only=True)
        unit, reads = DIRECTION / np.linalg.norm(DIRECTION), ["resid_post.*", "resid_post.1"]
        found = client.run(TOKENS, hooks=variant.plan.hooks, capture=reads[0], progress=False)
        for layer in range(client.describe().n_layers):
            rows = np.asarray(found[f"resid_post.{layer}"], dtype=np.float64)
            assert (np.abs(rows @ unit) / np.linalg.norm(rows, axis=1)).max() <= 1e-5
        induced = induce_direction(client, DIRECTION, 1)
        before, after = (
            client.run(TOKENS, hooks=hooks, capture=reads[1], progress=False) for hooks in ((), induced.plan.hooks)
        )
        np.testing.assert_allclose(
            after[reads[1]] - before[reads[1]], np.broadcast_to(DIRECTION, (len(TOKENS), 64)), rtol=1e-3, atol=1e-4
        )


def test_weights_alone_leave_what_tokens_bring_along(opened_here: Opened) -> None:
    client = opened_here("llama", "torch", "float32")
    variant = ablate_direction(client, DIRECTION, weights_only=True)
    unit = DIRECTION / np.linalg.norm(DIRECTION)
    found = client.run(TOKENS, hooks=as_hooks(variant), capture=["embed", "resid_post.*"], progress=False)
    np.testing.assert_allclose(found["resid_post.2"] @ unit, found["embed"] @ unit, rtol=1e-4, atol=1e-6)


def test_a_bias_brings_a_direction_about(opened_here: Opened) -> None:
    client = opened_here("llama", "torch", "float32")
    variant = induce_direction(client, DIRECTION, 1, alpha=0.5)
    ours = client.run(TOKENS, hooks=as_hooks(variant), capture="logits", progress=False)["logits"]
    theirs = client.run(
        TOKENS, hooks=hook("mlp_out.1", Add(Tensor.of(DIRECTION), 0.5)), capture="logits", progress=False
    )["logits"]
    assert gap(ours, theirs) <= 1e-6
    with pytest.raises(InvalidArgument, match="layer 9 is outside"):
        induce_direction(client, DIRECTION, 9)
    with pytest.raises(InvalidArgument, match="not all 0"):
        ablate_direction(client, np.zeros(64))


def test_the_planted_behaviour_is_there_and_absent_where_it_is_not(planted: Client) -> None:
    ones, zeros = prompts(12, 1)
    found = behaviour_present(planted, ones, zeros, [REFUSAL])
    assert found.present
    assert found.interval[0] < found.difference < found.interval[1]
    nothing = behaviour_present(planted, zeros[:6], zeros[6:], [REFUSAL])
    assert not nothing.present
    assert "cannot be measured" in str(nothing)


def test_log_odds() -> None:
    p = np.array([0.5, 0.9, 1e-9])
    np.testing.assert_allclose(logodds(np.log(p)), np.log(p / (1 - p)), rtol=1e-9, atol=1e-9)


def test_its_direction_is_found_chosen_and_removed(planted: Client) -> None:
    ones, zeros = prompts(12, 1)
    directions = behaviour_direction(planted, ones, zeros)
    n_layers = planted.describe().n_layers
    assert directions.values.shape == (3, n_layers, 64)
    assert directions.unit(-1, 0) @ PLANTED > 0.7
    assert abs(directions.unit(-2, 0) @ PLANTED) < 0.6, "the token before says nothing of the topic"
    chosen = select_direction(planted, directions, ones, zeros, [REFUSAL], max_kl=0.2, prune_last=0.0)
    assert chosen.best.position == -1
    assert chosen.best.ablated < chosen.base - 1
    assert len(chosen.candidates) == 3 * n_layers
    assert chosen.best.ablated == min(
        one.ablated for one in chosen.candidates if not chosen.passed or (one.kl <= 0.2 and one.induced > 0)
    )
    held = prompts(10, 2)
    scores = score_behaviour(planted, *held, [REFUSAL], hooks=as_hooks(ablate_direction(planted, chosen.direction)))
    assert scores.removed > 0.5
    assert scores.on_positives.high < 0
    assert scores.cost.value >= 0
    random = score_behaviour(planted, *held, [REFUSAL], hooks=ablation_hooks(DIRECTION))
    assert random.removed < scores.removed / 3


def test_bounds_that_nothing_keeps_are_said(planted: Client) -> None:
    ones, zeros = prompts(6, 1)
    directions = behaviour_direction(planted, ones, zeros, positions=(-1,))
    chosen = select_direction(planted, directions, ones, zeros, [REFUSAL], max_kl=0.0, prune_last=0.0)
    assert not chosen.passed
    assert "no direction of 3 keeps the bounds" in chosen.sentence
    assert "is above 0" in chosen.sentence


def test_a_score_needs_its_cost(planted: Client) -> None:
    with pytest.raises(InvalidArgument, match="says nothing"):
        score_behaviour(planted, prompts(2, 1)[0], [], [REFUSAL])


def test_a_gate_acts_where_it_should_and_leaves_others_to_the_bit(planted: Client) -> None:
    """A condition on the row itself, before the layer that acts: the answer's first token is reached too."""
    ones, zeros = prompts(12, 1)
    condition = fit_condition(planted, ones, zeros, sites="resid_post.0", pool="last", latch=False, n_shuffles=2)
    assert condition.f1 >= 0.9
    direction = behaviour_direction(planted, ones, zeros).unit(-1, 2)
    edit = hook("resid_post.2", ProjectOut(Tensor.of(direction)))
    held = prompts(8, 3)
    variant = gate(planted, [edit], condition, name="gated")
    free, gated = (
        score_behaviour(planted, *held, [REFUSAL], hooks=hooks) for hooks in ([edit], list(variant.plan.hooks))
    )
    assert abs(free.positives[1].mean() - gated.positives[1].mean()) <= 0.05
    assert gated.removed > 0.3
    for prompt in held[1]:
        plain, changed = (
            planted.run(prompt, hooks=hooks, capture=capture("logits", positions=-1), progress=False)["logits"]
            for hooks in ((), variant.plan.hooks)
        )
        quiet = condition.condition.threshold > _cosine(planted, prompt, condition)
        assert np.array_equal(plain, changed) == quiet
    towards = redirect(planted, 20 * direction, "resid_post.2", condition)
    assert score_behaviour(planted, *held, [REFUSAL], hooks=list(towards.plan.hooks)).on_positives.value > 0


def _cosine(client: Client, prompt: list[int], condition: Any) -> float:
    row = np.asarray(client.run(prompt, capture=condition.site, progress=False)[condition.site][-1], dtype=np.float64)
    return float(row @ condition.condition.direction.floats() / np.linalg.norm(row))


def test_a_detector_is_judged_on_prompts_it_has_not_seen(planted: Client) -> None:
    found = detector(planted, *prompts(20, 5))
    assert found.auroc >= 0.95
    assert found.recall >= 0.6, "95 % of ten training prompts"
    assert found.false_positive_interval[0] <= found.false_positives <= found.false_positive_interval[1]
    ones, zeros = prompts(6, 6)
    scores = found.scores(planted, [*ones, *zeros])
    assert scores[:6].min() > scores[6:].max()
    rng = np.random.default_rng(0)
    mixed = [prompts(20, 5)[int(rng.integers(2))][i] for i in range(20)]
    assert detector(planted, mixed[:10], mixed[10:]).auroc < 0.95


@pytest.mark.parametrize("backend", ["torch", "mlx"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_served_variant_is_its_hooks_and_is_scored_by_name(opened_here: Opened, family: str, backend: str) -> None:
    client = opened_here(family, backend, "float32")
    client.load_variant(ablate_direction(client, DIRECTION), name="without")
    ours = client.run(TOKENS, variant="without", capture=["logits", "resid_post.*"], progress=False)
    theirs = client.run(TOKENS, hooks=ablation_hooks(DIRECTION), capture="logits", progress=False)["logits"]
    assert gap(ours["logits"], theirs) <= 1e-5
    unit = DIRECTION / np.linalg.norm(DIRECTION)
    for layer in range(client.describe().n_layers):
        rows = np.asarray(ours[f"resid_post.{layer}"], dtype=np.float64)
        assert (np.abs(rows @ unit) / np.linalg.norm(rows, axis=1)).max() <= 1e-5
    sides = ([TOKENS, TOKENS[:8]], [TOKENS[2:], TOKENS[4:]])
    named, hooked = (
        score_behaviour(client, *sides, [REFUSAL], **how)
        for how in ({"variants": [VariantUse("without")]}, {"hooks": ablation_hooks(DIRECTION)})
    )
    np.testing.assert_allclose(named.positives, hooked.positives, rtol=1e-3)
    np.testing.assert_allclose(named.kl, hooked.kl, rtol=1e-2, atol=1e-6)
    client.unload_variant("without")
