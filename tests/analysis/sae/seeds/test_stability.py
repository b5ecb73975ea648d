"""PWMCC against answers from paper, and what it must not depend on."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from probewire.analysis.sae.seeds.stability import (
    best_matches,
    compare,
    decoders,
    one_to_one,
    permutation_test,
    pwmcc,
    stability,
)
from probewire.protos.errors import InvalidArgument

module: Any = import_module("probewire.analysis.sae.seeds.stability")  # the package exports the function of that name

RNG = np.random.default_rng(0)


def dictionaries(
    n: int, *, noise: float, d_sae: int = 40, d_in: int = 12, seed: int = 1
) -> dict[str, NDArray[np.float64]]:
    """One dictionary, found `n` times with noise, its latents in another order and sign each time."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((d_sae, d_in))
    found = dict[str, NDArray[np.float64]]()
    for number in range(n):
        rows = truth + noise * rng.standard_normal((d_sae, d_in))
        found[f"seed {number}"] = (rows * rng.choice([-2.0, 0.5], (d_sae, 1)))[rng.permutation(d_sae)]
    return found


def test_two_dictionaries_on_paper() -> None:
    first = np.array([[3.0, 0.0], [0.0, -1.0]])
    second = np.array([[1.0, 0.0], [1.0, 1.0], [1.0, np.sqrt(3.0)]])
    one, two = best_matches(first, second)
    np.testing.assert_allclose(one, [1.0, np.sqrt(0.75)], atol=1e-7)
    np.testing.assert_allclose(two, [1.0, np.sqrt(0.5), np.sqrt(0.75)], atol=1e-7)
    known = 0.5 * ((1 + np.sqrt(0.75)) / 2 + (1 + np.sqrt(0.5) + np.sqrt(0.75)) / 3)
    assert pwmcc(first, second) == pytest.approx(known, abs=1e-7)
    assert pwmcc(second, first) == pytest.approx(known, abs=1e-7)


def test_order_sign_and_length_have_no_say() -> None:
    found = stability(dictionaries(4, noise=0.0), matching=True)
    assert found.mean == pytest.approx(1.0, abs=1e-6)
    assert found.assigned_mean == pytest.approx(1.0, abs=1e-6)
    assert found.matched(0.999) == found.shared(0.999) == 1.0
    first, second = RNG.standard_normal((30, 8)), RNG.standard_normal((50, 8))
    plain = pwmcc(first, second)
    assert pwmcc(-3.0 * first[RNG.permutation(30)], second * 1e-4) == pytest.approx(plain, abs=1e-6)


def test_noise_lowers_it_towards_random() -> None:
    means = [stability(dictionaries(4, noise=noise)).mean for noise in (0.1, 0.3, 0.6)]
    assert means == sorted(means, reverse=True)
    random = stability({str(i): RNG.standard_normal((40, 12)) for i in range(4)})
    assert means[-1] > random.mean + 0.02
    assert stability(dictionaries(4, noise=50.0)).mean == pytest.approx(random.mean, abs=0.02)


def test_blocks_change_nothing_and_bound_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (RNG.standard_normal((3000, 8)).astype(np.float32) for _ in range(2))
    whole = best_matches(first, second)
    monkeypatch.setattr(module, "_BLOCK_BYTES", 1 << 20)
    tracemalloc.start()
    parts = best_matches(first, second)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    for one, two in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
    assert peak < 6 << 20, "all cosines at once are 36 MB"


def test_one_to_one_is_the_best_of_all_matchings() -> None:
    first, second = RNG.standard_normal((5, 3)), RNG.standard_normal((6, 3))
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (first, second)]
    cosines = np.abs(unit[0] @ unit[1].T)
    best = max(sum(cosines[i, j] for i, j in enumerate(chosen)) for chosen in itertools.permutations(range(6), 5))
    found = one_to_one(first, second)
    assert found.shape == (5,)
    assert found.sum() == pytest.approx(best, abs=1e-6)
    several = stability(dictionaries(3, noise=1.0), matching=True)
    assert several.assigned_mean is not None
    assert several.assigned_mean < several.mean


def test_shares_of_matched_latents_on_paper() -> None:
    """Of three seeds, latent e0 is in all, e1 in two, the rest in one."""
    e = np.eye(5)
    found = stability({"a": e[[0, 1]], "b": e[[1, 0]], "c": e[[0, 4]]})
    assert found.matched() == pytest.approx((1.0 + 0.5 + 1.0 + 0.5 + 0.5 + 0.5) / 6)
    assert found.shared() == pytest.approx(0.5)
    assert found.latent_scores("a").tolist() == [1.0, 0.5]
    assert found.latent_scores("b").tolist() == [0.5, 1.0]
    assert np.isnan(found.best[1][1]).all()
    assert found.pairs[0, 1] == 1.0
    assert found.mean == pytest.approx((1.0 + 0.5 + 0.5) / 3)


def test_dead_latents_can_be_left_out() -> None:
    clean = dictionaries(3, noise=0.05)
    padded = {name: np.vstack([rows, RNG.standard_normal((40, 12))]) for name, rows in clean.items()}
    alive = {name: np.arange(80) < 40 for name in clean}
    assert stability(padded, alive=alive).mean == stability(clean).mean > stability(padded).mean + 0.1


def test_trained_against_random() -> None:
    trained = stability(dictionaries(5, noise=0.3))
    random = stability({str(i): np.random.default_rng([2, i]).standard_normal((40, 12)) for i in range(5)})
    found = compare(trained, random)
    assert found.difference == pytest.approx(trained.mean - random.mean)
    assert found.ratio == pytest.approx(trained.mean / random.mean)
    assert found.lcb == found.trained.low - found.control.high
    assert 0 < found.lcb < found.difference
    assert found.p == pytest.approx(1 / 184_756, rel=1e-6) or found.p < 1e-3
    same = compare(
        random, stability({str(i): np.random.default_rng([3, i]).standard_normal((40, 12)) for i in range(5)})
    )
    assert same.lcb < 0


def test_the_permutation_test_sees_across_both_kinds() -> None:
    trained = dictionaries(4, noise=0.3)
    random = {str(i): np.random.default_rng([2, i]).standard_normal((40, 12)) for i in range(4)}
    assert permutation_test(trained, random) == 1 / 70
    assert permutation_test(random, trained) == 1.0
    null = list[float]()
    for number in range(40):
        rng = np.random.default_rng([3, number])
        drawn = {str(i): rng.standard_normal((20, 6)) for i in range(8)}
        first = {name: drawn.pop(name) for name in list(drawn)[:4]}
        null.append(permutation_test(first, drawn))
    assert 0.35 < np.mean(null) < 0.65, "uniform where there is nothing to find"
    assert np.mean(np.array(null) <= 0.25) == pytest.approx(0.25, abs=0.2)


def test_decoders_of_saes_on_the_disk(save_sae: Callable[..., Path]) -> None:
    folders = {f"seed {seed}": save_sae("standard", 12, 20, seed=seed) for seed in range(2)}
    found = decoders(folders, allow_untrained=True)
    assert {name: rows.shape for name, rows in found.items()} == {"seed 0": (20, 12), "seed 1": (20, 12)}
    assert 0 < stability(found).mean < 1
    with pytest.raises(InvalidArgument, match="is no SAE"):
        decoders({"none": folders["seed 0"].parent / "nothing"})


def test_what_cannot_be_compared_is_refused() -> None:
    rows = RNG.standard_normal((6, 4))
    with pytest.raises(InvalidArgument, match="two dictionaries or more, got 1"):
        stability({"a": rows})
    with pytest.raises(InvalidArgument, match="a and b hold the same dictionary"):
        stability({"a": rows, "b": rows * 2.0})
    with pytest.raises(InvalidArgument, match="width 4 and 3"):
        stability({"a": rows, "b": rows[:, :3]})
    with pytest.raises(InvalidArgument, match="b holds NaN"):
        stability({"a": rows, "b": np.where(rows > 0, rows, np.nan)})
    with pytest.raises(InvalidArgument, match=r"b: 2 latents have a direction of length 0 \(the first: \[0, 3\]\)"):
        stability({"a": rows, "b": rows * np.array([0, 1, 1, 0, 1, 1])[:, None]})
    with pytest.raises(InvalidArgument, match=r"\[d_sae, d_in\], got shape \[4\]"):
        pwmcc(rows, rows[0])
    with pytest.raises(InvalidArgument, match="alive has masks for"):
        stability({"a": rows, "b": rows[::-1] + 1}, alive={"a": np.ones(6, bool)})
    with pytest.raises(InvalidArgument, match="a mask of 6 booleans"):
        stability({"a": rows, "b": rows + 1}, alive={"a": np.ones(5, bool), "b": np.ones(6, bool)})
    with pytest.raises(InvalidArgument, match="up to 8192 latents"):
        one_to_one(np.ones((8193, 1)), np.ones((2, 1)))
    found = stability({"a": rows, "b": rows + 1})
    with pytest.raises(InvalidArgument, match="above 0 and up to 1"):
        found.matched(1.5)
    with pytest.raises(InvalidArgument, match="no dictionary 'c'"):
        found.latent_scores("c")
