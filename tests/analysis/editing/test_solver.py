"""The solver against dense closed forms written out here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from probewire.analysis.editing import solve_delta
from probewire.analysis.editing.solver import likeness
from probewire.protos.errors import InvalidArgument

D_IN, D_OUT = 24, 10
EYE: Any = np.eye(D_IN)


def inverse(matrix: Any) -> Any:
    return np.linalg.inv(np.asarray(matrix, dtype=np.float64))


def drawn(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


def moment(seed: int = 9) -> Any:
    rows = drawn(200, D_IN, seed=seed) * np.geomspace(0.05, 3, D_IN)
    return rows.T @ rows / len(rows)


def apart(one: Any, other: Any) -> float:
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def test_one_key_is_romes_closed_form() -> None:
    weight, key, value, c = drawn(D_OUT, D_IN), drawn(D_IN, seed=1), drawn(D_OUT, seed=2), moment()
    solved = solve_delta(key, value - weight @ key, moment=c, ridge=0.1)
    g: Any = c / c.trace() * D_IN + 0.1 * EYE
    by_hand: Any = (value - weight @ key)[:, None] * (inverse(g) @ key) / (key @ inverse(g) @ key)
    assert apart(solved.dense, by_hand) < 1e-10
    assert apart((weight + solved.dense) @ key, value) < 1e-10
    assert solved.a.shape == (D_IN, 1)
    assert solved.condition == 1
    assert solved.norm == pytest.approx(float(np.linalg.norm(by_hand)))


@pytest.mark.parametrize("with_moment", [False, True])
@pytest.mark.parametrize("n_preserved", [1, 9])
def test_exact_writes_what_is_wanted_and_leaves_what_is_preserved(with_moment: bool, n_preserved: int) -> None:
    keys, wanted, kept = drawn(D_IN, 4), drawn(D_OUT, 4, seed=1), drawn(D_IN, n_preserved, seed=2)
    c = moment() if with_moment else None
    solved = solve_delta(keys, wanted, moment=c, preserve=kept)
    assert apart(solved.dense @ keys, wanted) < 1e-8
    assert np.linalg.norm(solved.dense @ kept) / np.linalg.norm(wanted) < 1e-8
    assert np.linalg.matrix_rank(solved.dense) <= 4
    g: Any = EYE if c is None else c / c.trace() * D_IN + 0.1 * EYE
    whole, target = (
        np.concatenate([keys, kept], axis=1),
        np.concatenate([wanted, np.zeros((D_OUT, n_preserved))], axis=1),
    )
    by_hand: Any = target @ inverse(whole.T @ inverse(g) @ whole) @ whole.T @ inverse(g)
    assert apart(solved.dense, by_hand) < 1e-8
    assert solved.free_dimensions == D_IN - n_preserved


def test_it_is_the_least_change_that_does_it() -> None:
    keys, wanted, kept, c = drawn(D_IN, 3), drawn(D_OUT, 3, seed=1), drawn(D_IN, 5, seed=2), moment()
    found = solve_delta(keys, wanted, moment=c, preserve=kept).dense
    g: Any = c / c.trace() * D_IN + 0.1 * EYE
    whole = np.concatenate([keys, kept], axis=1)
    silent = EYE - whole @ np.linalg.pinv(whole)  # changes that no key sees
    for seed in range(5):
        other = found + 0.1 * drawn(D_OUT, D_IN, seed=seed) @ silent
        assert np.trace(other @ g @ other.T) > np.trace(found @ g @ found.T)


def test_without_a_moment_it_is_the_pseudo_inverse() -> None:
    keys, wanted = drawn(D_IN, 5), drawn(D_OUT, 5, seed=1)
    assert apart(solve_delta(keys, wanted).dense, wanted @ np.linalg.pinv(keys)) < 1e-10
    same = solve_delta(keys, wanted, moment=EYE * 7, ridge=0.5)  # any multiple of I weighs all alike
    assert apart(same.dense, wanted @ np.linalg.pinv(keys)) < 1e-10


@pytest.mark.parametrize("n_preserved", [0, 6])
def test_ridge_is_memits_closed_form(n_preserved: int) -> None:
    keys, wanted, c = drawn(D_IN, 4), drawn(D_OUT, 4, seed=1), moment()
    kept = drawn(D_IN, n_preserved, seed=2) if n_preserved else None
    gram: Any = 3.0 * c + keys @ keys.T + (0 if kept is None else 2.0 * kept @ kept.T / n_preserved)
    by_hand: Any = wanted @ keys.T @ inverse(gram)
    solved = solve_delta(keys, wanted, moment=c, preserve=kept, mode="ridge", lam=3.0, weight=2.0)
    assert apart(solved.dense, by_hand) < 1e-8
    assert solved.a.shape[1] == 4
    default = solve_delta(keys, wanted, moment=c, mode="ridge").dense
    assert apart(default, wanted @ keys.T @ inverse(D_IN / 100 * c + keys @ keys.T)) < 1e-8


def test_a_large_lambda_changes_nothing() -> None:
    keys, wanted = drawn(D_IN, 4), drawn(D_OUT, 4, seed=1)
    sizes = [solve_delta(keys, wanted, moment=moment(), mode="ridge", lam=10.0**p).norm for p in range(0, 13, 3)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == pytest.approx(sizes[-2] / 1000, rel=1e-6)  # so it goes to 0 as 1/λ
    assert sizes[-1] < 1e-7 * sizes[0]


def test_null_space_is_alphaedits_closed_form() -> None:
    keys, wanted, c = drawn(D_IN, 4), drawn(D_OUT, 4, seed=1), moment()
    values, vectors = np.linalg.eigh(c)
    small = values < 0.6 * c.trace() / D_IN
    p = vectors[:, small] @ vectors[:, small].T
    by_hand: Any = wanted @ (p @ keys).T @ inverse(p @ keys @ keys.T @ p + 0.3 * EYE)
    solved = solve_delta(keys, wanted, moment=c, mode="null_space", tau=0.6, lam=0.3)
    assert apart(solved.dense, by_hand) < 1e-8
    assert solved.free_dimensions == int(small.sum()) < D_IN
    assert solved.left_energy == pytest.approx(float(values[small].sum() / values.sum()))
    large = vectors[:, ~small]
    assert np.linalg.norm(solved.dense @ large) < 1e-10 * solved.norm


def test_null_space_leaves_preserved_keys_too() -> None:
    kept = drawn(D_IN, 3, seed=4)
    solved = solve_delta(drawn(D_IN, 2), drawn(D_OUT, 2), moment=moment(), preserve=kept, mode="null_space")
    values, vectors = np.linalg.eigh(moment())
    small = vectors[:, values < 0.6 * values.mean()]
    assert np.linalg.norm(solved.dense @ small @ small.T @ kept) < 1e-9 * solved.norm
    assert np.linalg.norm(solved.dense @ kept) < 1e-9 * solved.norm


def test_preserved_keys_that_repeat_are_one() -> None:
    keys, wanted, kept = drawn(D_IN, 2), drawn(D_OUT, 2, seed=1), drawn(D_IN, 3, seed=2)
    many = np.concatenate([kept, kept, 5 * kept[:, :1], np.zeros((D_IN, 1))], axis=1)
    once, often = (solve_delta(keys, wanted, preserve=one) for one in (kept, many))
    assert apart(often.dense, once.dense) < 1e-9
    assert often.free_dimensions == once.free_dimensions == D_IN - 3


def test_keys_that_are_the_same_are_refused() -> None:
    keys, wanted = drawn(D_IN, 3), drawn(D_OUT, 3, seed=1)
    keys[:, 2] = 2 * keys[:, 0] + 1e-8 * keys[:, 1]
    with pytest.raises(InvalidArgument, match=r"keys 0 and 2 are the same \(cosine 1\.0000"):
        solve_delta(keys, wanted)
    keys = drawn(D_IN, 3)
    with pytest.raises(InvalidArgument, match="key 1 lies in what is preserved"):
        solve_delta(keys, wanted, preserve=keys[:, 1] + 1e-9 * drawn(D_IN, seed=5))


@pytest.mark.parametrize(
    ("said", "options"),
    [
        ("3 keys and 2 wanted", {"wanted": drawn(D_OUT, 2)}),
        ("mode 'rome'", {"mode": "rome"}),
        ("moment must be symmetric", {"moment": drawn(D_IN, D_IN)}),
        ("moment must be symmetric", {"moment": np.eye(D_IN - 1)}),
        ("needs a second moment", {"mode": "null_space"}),
        ("not positive definite", {"mode": "ridge", "moment": np.diag(np.arange(D_IN) > 12).astype(float)}),
        ("no eigenvalue of the moment", {"mode": "null_space", "moment": EYE, "tau": 0.5}),
        ("preserve has keys of 5", {"preserve": drawn(5, 2)}),
        ("22 directions to preserve do not fit", {"preserve": drawn(D_IN, 22)}),
        ("holds NaN", {"wanted": np.full((D_OUT, 3), np.nan)}),
        ("ridge must be", {"ridge": -1.0}),
    ],
)
def test_what_is_refused(said: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=said):
        solve_delta(drawn(D_IN, 3), options.pop("wanted", drawn(D_OUT, 3)), **options)


def test_a_key_of_zeros_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="key 1 is zero"):
        solve_delta(np.stack([drawn(D_IN), np.zeros(D_IN)], axis=1), drawn(D_OUT, 2))


def test_likeness_is_the_largest_cosine_in_the_metric_of_the_change() -> None:
    keys, others, c = drawn(D_IN, 3), drawn(D_IN, 5, seed=1), moment()
    assert likeness(keys, keys) == pytest.approx(1.0)
    g = inverse(c / c.trace() * D_IN + 0.1 * EYE)
    for metric, given in ((EYE, None), (g, c)):
        cosines = [[k @ metric @ o / np.sqrt((k @ metric @ k) * (o @ metric @ o)) for k in keys.T] for o in others.T]
        assert likeness(keys, others, moment=given) == pytest.approx(float(np.mean(np.max(cosines, axis=1))), rel=1e-9)


def test_a_moment_that_holds_the_others_tells_them_apart() -> None:
    shared = drawn(D_IN, 1, seed=4)
    keys, others = (shared + 0.5 * drawn(D_IN, n, seed=n) for n in (3, 6))
    apart_from = likeness(keys, others, moment=moment())
    assert apart_from > 0.6
    assert likeness(keys, others, moment=moment() + 50 * others @ others.T) < apart_from / 2
