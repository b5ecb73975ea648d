"""Composition against the dense formulas, written out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from probewire.analysis.variants import compose, conflicts, diff
from probewire.analysis.variants.compose import projected
from probewire.analysis.variants.conflicts import basis, inner
from probewire.analysis.variants.ties import dense_ties
from probewire.protos.edits import Add, Clamp, LowRank, Replace, Scale, Zeros
from probewire.protos.errors import FailedPrecondition, InvalidArgument
from probewire.protos.hooks import Hook, Span, Where
from probewire.protos.spec import Plan
from probewire.protos.variants.delta import Delta
from probewire.protos.variants.manifest import Base, Manifest
from probewire.protos.variants.variant import Variant

RNG = np.random.default_rng(11)
D_IN, D_OUT = 20, 14


def delta(rank: int = 3, *, bias: bool = False) -> Delta:
    return Delta(
        RNG.normal(size=(D_IN, rank)), RNG.normal(size=(rank, D_OUT)), RNG.normal(size=D_OUT) if bias else None
    )


def variant(
    name: str, *, hooks: tuple[Hook, ...] = (), rank: int = 3, weights: tuple[str, ...] = ("w_down.0", "w_o.1")
) -> Variant:
    deltas = {weight: delta(rank, bias=weight.startswith("w_down")) for weight in weights}
    return Variant(deltas, Plan(hooks), Manifest(name=name, base=Base(id="m", model_hash="ab" * 32)))


def dense(one: Delta) -> Any:
    return one.a.astype(np.float64) @ one.b.astype(np.float64)


def test_figures_of_a_conflict_are_the_dense_ones() -> None:
    one, other = variant("one"), variant("other", rank=2)
    samples = RNG.normal(size=(200, D_IN)) @ RNG.normal(size=(D_IN, D_IN))
    c = samples.T @ samples / 200
    found = {item.weight: item for item in conflicts((one, other), {"w_o.1": c})}
    assert set(found) == {"w_down.0", "w_o.1"}
    for weight, item in found.items():
        first, second = dense(one.deltas[weight]), dense(other.deltas[weight])
        assert inner(one.deltas[weight], other.deltas[weight]) == pytest.approx((first * second).sum(), rel=1e-10)
        cosine = (first * second).sum() / np.linalg.norm(first) / np.linalg.norm(second)
        assert item.cosine == pytest.approx(cosine, abs=1e-10)
        for figure, spaces in (
            (item.inputs, (one.deltas[weight].a, other.deltas[weight].a)),
            (item.outputs, (one.deltas[weight].b.T, other.deltas[weight].b.T)),
        ):
            q1, q2 = (np.linalg.qr(space.astype(np.float64))[0] for space in spaces)
            angles = np.linalg.svd(q1.T @ q2, compute_uv=False)
            assert figure == pytest.approx(np.mean(angles**2), abs=1e-10)
    assert found["w_down.0"].cosine_data is None
    written = [samples @ dense(item.deltas["w_o.1"]) for item in (one, other)]
    cosine = (written[0] * written[1]).sum() / np.linalg.norm(written[0]) / np.linalg.norm(written[1])
    assert found["w_o.1"].cosine_data == pytest.approx(cosine, abs=1e-10)
    assert diff(one, one)[0].cosine == pytest.approx(1)
    assert "undo each other" in diff(one, one.scaled(-1).named("back"))[0].warning


def test_sum_is_what_naming_them_together_gives_in_any_order() -> None:
    one, other = variant("one"), variant("other", weights=("w_down.0", "w_q.0"))
    made = compose((one, other), scales=(0.5, -2.0))
    back = compose((other, one), scales=(-2.0, 0.5))
    for weight in ("w_down.0", "w_o.1", "w_q.0"):
        expected = sum(
            (scale * dense(item.deltas[weight]) for item, scale in ((one, 0.5), (other, -2.0)) if weight in item.deltas)
        )
        np.testing.assert_allclose(made.variant.dense(weight), expected, atol=1e-5)
        np.testing.assert_allclose(back.variant.dense(weight), expected, atol=1e-5)
    assert made.ranks["w_down.0"] == (6, 6)
    assert [parent["scale"] for parent in made.variant.manifest.made_of] == [0.5, -2.0]
    nothing = compose((one, one), scales=(1.0, -1.0)).variant
    assert max(item.norm() for item in nothing.deltas.values()) < 1e-5
    np.testing.assert_allclose(
        compose((one, one), scales=(0.5, 0.5)).variant.dense("w_o.1"), one.dense("w_o.1"), atol=1e-5
    )


def test_by_priority_the_later_one_is_silent_where_the_earlier_one_acts() -> None:
    high, low = delta(4), delta(5, bias=True)
    u, v = basis(high.b.T), basis(high.a)
    a, b, bias = projected(low, u, v)
    assert bias is not None
    size = np.linalg.norm(dense(low))
    assert np.linalg.norm(v.T @ a @ b) / size <= 1e-10  # on inputs that the first reads, nothing
    assert np.linalg.norm(a @ b @ u) / size <= 1e-10  # into outputs that the first writes, nothing
    assert np.linalg.norm(bias @ u) <= 1e-10
    eye_in, eye_out = np.eye(D_IN) - v @ v.T, np.eye(D_OUT) - u @ u.T
    np.testing.assert_allclose(a @ b, eye_in @ dense(low) @ eye_out, atol=1e-12)

    first, second = (Variant({"w_o.1": item}) for item in (high, low))
    strict = compose((first, second), "priority").variant.dense("w_o.1").astype(np.float64)
    np.testing.assert_allclose(v.T @ strict, v.T @ dense(high), atol=1e-5)
    soft = compose((first, second), "orthogonal").variant.dense("w_o.1").astype(np.float64)
    np.testing.assert_allclose(soft, dense(high) + dense(low) @ eye_out, atol=1e-5)
    assert compose((first, first), "priority").ranks["w_o.1"] == (8, 4)  # nothing is left of the second


def test_ties_by_hand() -> None:
    one, other = np.array([[4.0, -1.0, 0.1, 3.0]]), np.array([[2.0, 5.0, 0.2, -4.0]])
    assert dense_ties([one, other], 0.75).tolist() == [[3.0, 5.0, 0.0, -4.0]]
    assert dense_ties([one, other], 0.25).tolist() == [[4.0, 5.0, 0.0, 0.0]]


def test_ties_of_variants_is_the_dense_one_but_for_what_is_left_out() -> None:
    one, other = variant("one"), variant("other")
    made = compose((one, other), "ties", density=0.5)
    for weight, lost in made.energy_lost.items():
        expected = dense_ties([dense(one.deltas[weight]), dense(other.deltas[weight])], 0.5)
        gap = np.linalg.norm(made.variant.dense(weight) - expected) ** 2 / np.linalg.norm(expected) ** 2
        assert gap == pytest.approx(lost, abs=1e-5)
        assert 0 <= lost <= 0.01
    assert compose((one, other), max_rank=2).variant.deltas["w_o.1"].rank == 2


def test_gates_become_hooks_with_a_place_of_their_own() -> None:
    one, other = (
        variant("one", weights=("w_down.0",)),
        variant("other", weights=("w_o.1",), hooks=(Hook("resid_post.1", Scale(2.0)),)),
    )
    gates = (Where(phase="generated"), Where(spans=(Span(0, 4),)))
    made = compose((one, other), "gated", gates=gates).variant
    assert not made.deltas
    assert [(hook.site, type(hook.edit), hook.where) for hook in made.plan.hooks] == [
        ("mlp_out.0", LowRank, gates[0]),
        ("mlp_out.0", Add, gates[0]),
        ("attn_out.1", LowRank, gates[1]),
        ("resid_post.1", Scale, gates[1]),
    ]
    with pytest.raises(InvalidArgument, match=r"no hook does what the delta at w_q\.0 does"):
        compose((variant("q", weights=("w_q.0",)),), "gated", gates=gates[:1])
    with pytest.raises(InvalidArgument, match="has a where of its own"):
        compose((made,), "gated", gates=gates[:1])


def test_hooks_that_set_the_same_are_told() -> None:
    one = variant("one", hooks=(Hook("mlp_act.1", Replace(Zeros(), units=(1, 2))),))
    other = variant("other", hooks=(Hook("mlp_act.1", Clamp(max=1.0, units=(2, 3))),))
    apart = variant("apart", hooks=(Hook("mlp_act.1", Clamp(max=1.0, units=(7,))),))
    assert compose((one, other)).hook_conflicts == ("one and other both set mlp_act.1: the latter has the last word",)
    assert compose((one, apart)).hook_conflicts == ()
    with pytest.raises(InvalidArgument, match="strict: one and other"):
        compose((one, other), strict=True)


@pytest.mark.parametrize(
    ("ask", "why"),
    [
        (lambda one: compose(()), "needs variants"),
        (lambda one: compose((one,), "mean"), "allowed: sum"),
        (lambda one: compose((one, one), scales=(1.0,)), "1 scales for 2"),
        (lambda one: compose((one,), "gated"), "needs gates"),
        (lambda one: compose((one,), gates=(Where(),)), "nothing else takes them"),
        (lambda one: compose((one, one), "gated", gates=(Where(),)), "1 gates for 2"),
        (lambda one: compose((one, one), "ties", density=0.0), "density must be"),
    ],
)
def test_what_is_refused(ask: Any, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        ask(variant("one"))


def test_variants_of_two_models_are_not_composed() -> None:
    one = variant("one")
    other = replace(one, manifest=replace(one.manifest, base=Base(model_hash="cd" * 32)))
    with pytest.raises(FailedPrecondition, match="only variants of one model"):
        compose((one, other))
