"""Steering compared by where it acts: numbers against plain runs with the same hooks, and what is known on paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probewire.analysis.steering import (
    choice,
    compare_positions,
    conditional,
    continuation_perplexity,
    fit_condition,
    kl_at_end,
    logodds_of,
    measure,
    positions_of,
    semantic_density,
    steering_vector,
)
from probewire.analysis.steering.comparison import SteeringComparison
from probewire.analysis.steering.vectors import direction_of
from probewire.clients import Client, InvalidArgument, Logit, capture, steer

RNG = np.random.default_rng(0)
PROMPTS = [[int(t) for t in RNG.integers(5, 200, size=n)] for n in (9, 6, 12, 7)]
SITE = "resid_post.1"
VECTOR = RNG.normal(size=64)
Array = np.ndarray[Any, Any]


def _log_softmax(row: Array) -> Array:
    shifted = row - row.max()
    return shifted - np.log(np.exp(shifted).sum())


def _last(client: Client, prompt: list[int], hooks: Any = ()) -> Array:
    found = client.run(prompt, hooks=hooks, capture=capture("logits", positions=-1), progress=False)["logits"]
    return _log_softmax(np.asarray(found[0], dtype=np.float64))


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ("last", (7,)),
        ("last_3", (5, 6, 7)),
        ("last_20", (1, 2, 3, 4, 5, 6, 7)),
        ("first", (1,)),
        ("every_4", (1, 5)),
        ("all", (1, 2, 3, 4, 5, 6, 7)),
        ("generated", ()),
        ("dense_2", (2, 6)),
    ],
)
def test_where_strategies_steer(strategy: str, expected: tuple[int, ...]) -> None:
    density = np.array([99.0, 0, 5, 1, 1, 0, 7, 2])
    assert positions_of(strategy, 8, density) == expected


def test_no_strategy() -> None:
    for name in ("latest", "last_0", "dense_", "every_100"):
        with pytest.raises(InvalidArgument, match="no strategy"):
            positions_of(name, 8)
    with pytest.raises(InvalidArgument, match="needs the prompt's density"):
        positions_of("dense_3", 8)
    with pytest.raises(InvalidArgument, match="one token"):
        positions_of("last", 1)


def test_what_is_measured_is_what_runs_give(tiny: Client) -> None:
    plans = [[], [steer(SITE, VECTOR, 2.0, positions=[-1])], [steer(SITE, VECTOR, 3.0, inputs=("2",))]]
    found = measure(tiny, PROMPTS, [Logit(7), Logit(9), Logit(7), Logit(11)], plans)
    for index, (prompt, token) in enumerate(zip(PROMPTS, (7, 9, 7, 11), strict=True)):
        base = _last(tiny, prompt)
        for plan in range(3):
            hooks = (
                []
                if plan == 2 and index != 2
                else [steer(SITE, VECTOR, (0.0, 2.0, 3.0)[plan], positions=[-1])]
                if plan == 1
                else [steer(SITE, VECTOR, (0.0, 2.0, 3.0)[plan])]
            )
            row = _last(tiny, prompt, hooks)
            assert found.kl[plan, index] == pytest.approx((np.exp(base) * (base - row)).sum(), rel=1e-3, abs=1e-6)
            logits = tiny.run(prompt, hooks=hooks, capture=capture("logits", positions=-1), progress=False)["logits"]
            assert found.values[plan, index] == pytest.approx(logits[0, token], rel=1e-4, abs=1e-5)
    np.testing.assert_allclose(kl_at_end(tiny, PROMPTS, hooks=plans[1]), found.kl[1], rtol=1e-4, atol=1e-7)
    bare = measure(tiny, PROMPTS, Logit(7), plans, kl=False)
    np.testing.assert_allclose(bare.values[:, [0, 2]], found.values[:, [0, 2]], rtol=1e-5, atol=1e-5)
    assert np.isnan(bare.kl).all()


def test_a_choice_is_between_first_tokens(tiny: Client) -> None:
    found = choice(tiny, "see the ", ["cat", "cow", "ant"], ["dog"])
    before = len(tiny.tokenize("see the ").token_ids)
    first = [tiny.tokenize(f"see the {letter}").token_ids[before] for letter in "cad"]
    assert (found.ours, found.theirs) == (tuple(first[:2]), (first[2],)), (
        "cat and cow begin with one letter, a token here"
    )
    with pytest.raises(InvalidArgument, match="'cat', 'cow' begin with one token"):
        choice(tiny, "see the ", ["cat"], ["cow"])


def test_log_odds_are_of_the_sets(tiny: Client) -> None:
    one = choice(tiny, "see the", ["a", "b"], ["c"])
    row = _last(tiny, list(tiny.tokenize("see the").token_ids))
    expected = np.log(np.exp(row[list(one.ours)]).sum()) - row[one.theirs[0]]
    assert logodds_of(tiny, [one])[0] == pytest.approx(expected, rel=1e-4)


def test_density_is_what_a_small_change_moves(tiny: Client) -> None:
    prompt, unit = PROMPTS[0], VECTOR / np.linalg.norm(VECTOR)
    density = semantic_density(tiny, prompt, 5 * VECTOR, SITE, Logit(7))
    norms = np.linalg.norm(tiny.run(prompt, capture=SITE, progress=False)[SITE], axis=1)
    step = 0.02
    plans = [[steer(SITE, unit, sign * step * float(norms[p]), positions=[p])] for p in (2, 5, 8) for sign in (1, -1)]
    values = measure(tiny, [prompt], Logit(7), plans, kl=False).values[:, 0].reshape(3, 2)
    found = np.abs(values[:, 0] - values[:, 1]) / (2 * step)
    np.testing.assert_allclose(found, density[[2, 5, 8]], rtol=0.05, atol=2e-3 * density.max())


PLANTED = VECTOR / np.linalg.norm(VECTOR)


def test_the_direction_of_planted_rows() -> None:
    rng = np.random.default_rng(2)
    zeros = rng.normal(size=(40, 64)) + 50 * rng.normal(size=64)
    ones = zeros + 6 * PLANTED + 0.3 * rng.normal(size=(40, 64))
    for method in ("difference of means", "pca"):
        assert direction_of(ones, zeros, method) @ PLANTED > 0.99
    assert direction_of(ones, zeros, "logistic") @ PLANTED > 0.6


def test_a_vector_of_texts_tells_them_apart(tiny: Client) -> None:
    """Kinds that differ in which tokens they are made of; the same rows with labels dealt anew do not."""
    rng = np.random.default_rng(3)
    kinds = [[[int(t) for t in rng.integers(low, low + 4, size=10)] for _ in range(12)] for low in (20, 120)]
    for pool in ("mean", "last"):
        found = steering_vector(tiny, kinds[0], kinds[1], SITE, pool=pool)
        assert found.auroc > 0.95, pool
        assert np.linalg.norm(found.direction) == pytest.approx(1)
        assert ((found.positive - found.negative) @ found.direction).mean() == pytest.approx(found.gap)
        assert found.vector.norms[SITE] == pytest.approx(abs(found.gap), rel=1e-5)
        dealt = np.array([found.shuffled(rng) @ found.direction for _ in range(40)])
        assert np.abs(dealt).mean() < 0.5, pool
    rows = tiny.run(kinds[0][0], capture=SITE, progress=False)[SITE]
    expected = steering_vector(tiny, kinds[0], kinds[1], SITE).positive[0]
    np.testing.assert_allclose(expected, rows[1:].mean(axis=0), rtol=1e-4, atol=1e-5)
    with pytest.raises(InvalidArgument, match="pca takes pairs"):
        steering_vector(tiny, kinds[0], kinds[1][:5], SITE, method="pca")


def test_equal_budgets_are_equal(tiny: Client) -> None:
    options: dict[str, Any] = {"strategies": ("last", "last_3", "all", "dense_3"), "n_random": 4}
    l2 = compare_positions(tiny, VECTOR, SITE, PROMPTS, Logit(7), strengths=(0.2, 0.5), **options)
    none = compare_positions(tiny, VECTOR, SITE, PROMPTS, Logit(7), strengths=(0.2, 0.5), budget="none", **options)
    np.testing.assert_allclose(l2.shifts[0], none.shifts[0], rtol=1e-4, atol=1e-5)
    rows = [tiny.run(prompt, capture=SITE, progress=False)[SITE][1:] for prompt in PROMPTS]
    assert l2.unit == pytest.approx(np.linalg.norm(np.concatenate(rows), axis=1).mean(), rel=1e-4)
    unit = VECTOR / np.linalg.norm(VECTOR)
    for index, prompt in enumerate(PROMPTS):
        strength = 0.5 * l2.unit / np.sqrt(3)
        hooks = [steer(SITE, unit, strength, positions=[-3, -2, -1])]
        logits = tiny.run(prompt, hooks=hooks, capture=capture("logits", positions=-1), progress=False)["logits"]
        assert l2.shifts[1, 1, index] + l2.base[index] == pytest.approx(logits[0, 7], rel=1e-3, abs=1e-4)
    equal = compare_positions(tiny, VECTOR, SITE, PROMPTS, Logit(7), strengths=(0.02,), budget="kl", **options)
    np.testing.assert_allclose(equal.kl.mean(axis=2), 0.02, rtol=0.1)


def test_a_metric_along_its_own_gradient_beats_chance_and_the_report_says_what_does_not(tiny: Client) -> None:
    gradient = tiny.gradients(PROMPTS[0], Logit(7), at=SITE, progress=False).gradients[SITE][-1]
    found = compare_positions(
        tiny,
        gradient,
        SITE,
        PROMPTS[:2],
        Logit(7),
        strategies=("last", "generated"),
        strengths=(0.25,),
        n_random=24,
        n_new=5,
    )
    assert found.beats("last") == 24
    assert found.wrong("last", 0.25) == 0
    assert set(found.continued) == {"base", "last", "generated"}
    assert not [line for line in found.sentences if "random directions" in line]
    against = compare_positions(
        tiny, -gradient, SITE, PROMPTS[:2], Logit(7), strategies=("last",), strengths=(0.25,), n_random=24
    )
    assert any("no more than the 95th percentile of random directions" in line for line in against.sentences)
    assert any("100% of the prompts the wrong way" in line for line in against.sentences)


def test_areas_are_of_the_curve() -> None:
    kl, shift = np.array([0.1, 0.4, 1.0]), np.array([1.0, 2.0, 3.0])
    found = SteeringComparison(
        site=SITE, budget="l2", strategies=("last",), strengths=(0.1, 0.5, 1.0), used=np.ones((1, 3)), unit=1.0, base=np.zeros(2),
        shifts=np.repeat(shift[None, :, None], 2, axis=2), kl=np.repeat(kl[None, :, None], 2, axis=2), control_column=1,
        random=np.zeros((1, 3)), shuffled=np.zeros((1, 0)), n_tokens={"last": 1.0},
    )  # fmt: skip
    # 0 … .1 to 1: .05; .1 … .4 from 1 to 2: .45; .4 … .5 from 2 to 2 + 1/6: .2083
    assert found.area("last", 0.5) == pytest.approx((0.05 + 0.45 + 0.1 * (2 + 1 / 12)) / 0.5)
    assert found.area("last", 2.0) == pytest.approx((0.05 + 0.45 + 0.6 * 2.5 + 1.0 * 3) / 2)
    assert found.shift_at("last", 0.25) == pytest.approx(1.5)
    assert np.isnan(found.shift_at("last", 1.5))


def test_perplexity_is_of_the_continuation_alone(tiny: Client) -> None:
    prompt, new = PROMPTS[0], [7, 99, 41]
    rows = np.asarray(tiny.run([*prompt, *new], capture="logits", progress=False)["logits"], dtype=np.float64)
    surprisal = [-_log_softmax(rows[len(prompt) - 1 + i])[token] for i, token in enumerate(new)]
    assert continuation_perplexity(tiny, [(prompt, new)])[0] == pytest.approx(np.exp(np.mean(surprisal)), rel=1e-3)


def _kinds(n: int, seed: int) -> tuple[list[list[int]], list[list[int]]]:
    rng = np.random.default_rng(seed)
    ones, zeros = ([[int(t) for t in rng.integers(low, low + 4, size=8)] for _ in range(n)] for low in (20, 120))
    return ones, zeros


@pytest.mark.parametrize("pool", ["mean", "last"])
def test_a_fitted_condition_holds_where_it_should_on_the_server(tiny: Client, pool: Any) -> None:
    """On prompts that were not used: latched by the prompt, read off by what a generated row captures."""
    found = fit_condition(tiny, *_kinds(12, 4), pool=pool, n_shuffles=4)
    assert found.f1 >= 0.9
    assert found.f1_interval[0] <= found.f1 <= found.f1_interval[1]
    assert found.shuffled_f1 < 0.85
    assert found.condition.normalise
    assert found.condition.latch == pool
    assert len(found.by_site) == tiny.describe().n_layers
    hooks = conditional([steer("resid_post.2", 100 * VECTOR)], found)
    told = {True: 0, False: 0}
    for kind, prompts in zip((True, False), _kinds(8, 5), strict=True):
        plain = tiny.generate(prompts, max_new_tokens=3, ignore_eos=True)
        steered = tiny.generate(prompts, hooks=hooks, max_new_tokens=3, ignore_eos=True, capture="resid_post.2")
        raw = tiny.generate(prompts, max_new_tokens=3, ignore_eos=True, capture="resid_post.2")
        for name in plain.inputs:
            one, two = (result.inputs[name]["resid_post.2"][8] for result in (steered, raw))
            moved = not np.allclose(one, two, atol=1e-3)
            told[kind] += moved == kind
            if not moved:
                assert steered.inputs[name].token_ids == plain.inputs[name].token_ids
    assert min(told.values()) >= 7, "of 8 each"


def test_a_hook_has_one_condition(tiny: Client) -> None:
    found = fit_condition(tiny, *_kinds(6, 4), sites="resid_post.0", n_shuffles=0)
    with pytest.raises(InvalidArgument, match="has a condition; join both"):
        conditional(conditional([steer(SITE, VECTOR)], found), found)
    with pytest.raises(InvalidArgument, match="4 prompts of either kind"):
        fit_condition(tiny, *_kinds(3, 4))
