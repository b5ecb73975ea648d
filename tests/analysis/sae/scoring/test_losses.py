"""Losses recovered: nothing is lost by an identity, everything by an ablation, and the sums are those of the logits."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from probewire.analysis.ablation.reference import tokenized
from probewire.analysis.sae.scoring.losses import _kl, losses
from probewire.analysis.sae.scoring.splice import splice
from probewire.clients import Add, Client, Constant, InvalidArgument, Replace, Run, Scale, Tensor, Zeros, capture, hook
from tests.analysis.sae.conftest import SITE

PROMPTS = [[256, 72, 101], [256, 40, 41, 42], [256, 100], [256]]
LENGTHS = [20, 12, 25, 3]
NOISE = Add(Tensor.of(np.random.default_rng(0).normal(size=64).astype(np.float32)), 0.7)


@pytest.fixture(scope="module")
def contexts(client: Client) -> list[list[int]]:
    """What the model itself goes on with: text that it predicts, so that ablating it costs something."""
    found: list[list[int]] = []
    for prompt, length in zip(PROMPTS, LENGTHS, strict=True):
        made = client.generate([prompt], max_new_tokens=length - len(prompt), temperature=0.0, ignore_eos=True)
        found.append(list(made.token_ids))
    return found


def log_probs(client: Client, context: list[int], edit: Any, **where: Any) -> Any:
    """[pos, vocabulary], straight from the logits."""
    hooks = [] if edit is None else [hook(SITE, edit, **where)]
    logits = client.run([context], hooks=hooks, capture=[capture("logits")]).captures["logits"].astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def oracle(client: Client, contexts: list[list[int]], edit: Any, **where: Any) -> tuple[float, float]:
    """Mean cross entropy, and mean KL from the clean model, over all contexts."""
    ce, kl, n, m = 0.0, 0.0, 0, 0
    for context in contexts:
        clean, changed = log_probs(client, context, None), log_probs(client, context, edit, **where)
        ce -= changed[np.arange(len(context) - 1), context[1:]].sum()
        kl += (np.exp(clean) * (clean - changed)).sum()
        n, m = n + len(context) - 1, m + len(context)
    return ce / n, kl / m


def test_sums_are_those_of_the_logits(client: Client, contexts: list[list[int]]) -> None:
    found = losses(client, contexts, SITE, {"noise": NOISE}, kl_positions=None, batch=3, progress=False)
    rows = [client.run([context], capture=[SITE]).captures[SITE] for context in contexts]
    mean = np.concatenate(rows).mean(axis=0)
    edits = {"clean": None, "zero": Replace(Zeros()), "mean": Replace(Constant(Tensor.of(mean))), "noise": NOISE}
    wanted = {name: oracle(client, contexts, edit) for name, edit in edits.items()}
    for name, variant in {"clean": found.clean, "zero": found.zero, "mean": found.mean, **found.saes}.items():
        assert found.ce(variant) == pytest.approx(wanted[name][0], rel=1e-5)
        assert found.kl(variant) == pytest.approx(wanted[name][1], rel=1e-4, abs=1e-9)
    (clean, _), (zero, kl_zero), (noise, kl_noise) = wanted["clean"], wanted["zero"], wanted["noise"]
    assert found.ce_loss_score("noise").value == pytest.approx((zero - noise) / (zero - clean), rel=1e-4)
    assert found.kl_div_score("noise").value == pytest.approx((kl_zero - kl_noise) / kl_zero, rel=1e-4)
    named = found.to_json("noise")
    assert named["model_performance_preservation"]["ce_loss_without_sae"] == pytest.approx(clean, rel=1e-5)
    assert named["token_stats"]["total_tokens_eval_reconstruction"] == sum(map(len, contexts)) - len(contexts)


def test_an_identity_recovers_everything_and_an_ablation_nothing(client: Client, contexts: list[list[int]]) -> None:
    found = losses(client, contexts, SITE, {"same": Scale(1.0), "zero": Replace(Zeros())}, progress=False)
    for score in (found.ce_loss_score("same"), found.kl_div_score("same")):
        assert (score.value, score.low, score.high) == (1.0, 1.0, 1.0)
    assert found.ce_loss_score("zero").value == 0.0
    assert found.kl_div_score("zero").value == 0.0
    assert found.kl_div_score("same", against="mean").value == 1.0


def test_what_is_spared_keeps_its_activation(client: Client, contexts: list[list[int]]) -> None:
    found = losses(client, contexts, SITE, {"noise": NOISE}, spare="first", kl_positions=None, progress=False)
    ce, kl = oracle(client, contexts, NOISE, spans=[(1, None)])
    assert found.ce(found.saes["noise"]) == pytest.approx(ce, rel=1e-5)
    assert found.kl(found.saes["noise"]) == pytest.approx(kl, rel=1e-4)
    assert found.ce(found.zero) == pytest.approx(oracle(client, contexts, Replace(Zeros()))[0], rel=1e-5)
    assert "every position but each context's first (4 of 60 positions spared)" in found.to_json("noise")["how"]["sae"]
    same_places = losses(client, contexts, SITE, {"z": Replace(Zeros())}, spare="first", ablate_everywhere=False)
    assert same_places.ce_loss_score("z").value == 0.0
    assert same_places.ce(same_places.zero) == pytest.approx(
        oracle(client, contexts, Replace(Zeros()), spans=[(1, None)])[0]
    )


def test_massive_activations_are_found_by_their_norm(client: Client, contexts: list[list[int]]) -> None:
    """Two positions are made massive at an earlier site; they, and no others, are spared."""
    items = list(tokenized(client, {"a": contexts[0], "b": contexts[1]}).values())
    plain = splice(client, items, SITE, "massive")
    assert plain.n_spared == 0
    assert plain.positions == {"a": tuple(range(20)), "b": tuple(range(12))}

    class Massive:
        """The client, with an earlier edit in every run."""

        def run(self, prompts: Any, *, hooks: Any = (), **options: Any) -> Run:
            edits = [
                hook("resid_post.0", Scale(1e4), positions=[0, 7], inputs="a"),
                hook("resid_post.0", Scale(1e4), positions=[3], inputs="b"),
            ]
            return client.run(prompts, hooks=[*edits, *hooks], **options)

    found = splice(cast("Client", Massive()), items, SITE, "massive")
    assert found.n_spared == 3
    assert set(range(20)) - set(found.positions["a"]) == {0, 7}
    assert set(range(12)) - set(found.positions["b"]) == {3}
    assert "at most 10 times the median (3 of 32 positions spared)" in found.rule
    zeroed = client.run(items, hooks=found.hooks(SITE, Replace(Zeros()), items), capture=[SITE])
    rows = zeroed.inputs["a"][SITE]
    assert np.flatnonzero(rows.any(axis=1)).tolist() == [0, 7]


def test_positions_for_kl_are_drawn_with_the_seed(client: Client, contexts: list[list[int]]) -> None:
    first, again, other = (
        losses(client, contexts, SITE, {"noise": NOISE}, kl_positions=4, seed=seed, progress=False)
        for seed in (1, 1, 2)
    )
    assert first.n_kl.tolist() == [4, 4, 4, 3]
    assert np.array_equal(first.saes["noise"].kl, again.saes["noise"].kl)
    assert not np.array_equal(first.saes["noise"].kl, other.saes["noise"].kl)
    none = losses(client, contexts, SITE, {"noise": NOISE}, kl_positions=0, progress=False)
    assert "model_behavior_preservation" not in none.to_json("noise")
    with pytest.raises(InvalidArgument, match="kl_positions"):
        none.kl_div_score("noise")


def test_what_cannot_be_scored_is_refused(client: Client, contexts: list[list[int]]) -> None:
    with pytest.raises(InvalidArgument, match="2 tokens or more; too short: 0"):
        losses(client, [[1]], SITE, {"noise": NOISE}, progress=False)
    with pytest.raises(InvalidArgument, match="kl_positions must be 0 or more"):
        losses(client, contexts, SITE, {"noise": NOISE}, kl_positions=-1, progress=False)
    with pytest.raises(InvalidArgument, match="allowed: none, first, massive"):
        losses(client, contexts, SITE, {"noise": NOISE}, spare="last", progress=False)
    found = losses(client, contexts, SITE, {"noise": NOISE}, progress=False)
    with pytest.raises(InvalidArgument, match="there are: noise"):
        found.ce_loss_score("other")
    random = losses(client, [list(range(10, 30))], SITE, {"noise": NOISE}, progress=False)
    with pytest.raises(InvalidArgument, match="costs the model nothing"):
        random.ce_loss_score("noise")
    told = random.to_json("noise")["model_performance_preservation"]
    assert told["ce_loss_score"] is None
    assert "costs the model nothing" in told["ce_loss_score_refused"]
    with pytest.raises(InvalidArgument, match='"zero" or "mean"'):
        found.ce_loss_score("noise", against="median")


def test_a_divergence_keeps_its_digits_and_is_never_negative() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4, 1000)) * 4
    assert _kl(rows, rows) == 0.0
    for size in (1e-7, 1e-4, 1.0):
        nudged = rows + size * rng.normal(size=rows.shape)
        p = np.exp(rows) / np.exp(rows).sum(axis=1, keepdims=True)
        change = nudged - rows
        centred = change - (p * change).sum(axis=1, keepdims=True)
        second = (p * centred**2).sum() / 2  # what a divergence is to second order
        assert _kl(rows, nudged) == pytest.approx(second, rel=1.0 if size == 1.0 else 1e-2)
        assert _kl(rows, nudged) > 0
    rows[:, 3] = -np.inf
    other = rows.copy()
    other[:, 5] = -np.inf
    assert _kl(rows, rows) == 0.0, "0 · log 0"
    assert _kl(rows, other) == np.inf
    assert 0 < _kl(other, rows) < np.inf
